package server

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/state"
)

func TestReplace(t *testing.T) {
	h := newHost(t)
	h.create("v", "base", "top")
	h.create("w", "other")
	before := h.record("v")
	// An image of another device is not for this one.
	for level := range 2 {
		_, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("other"), Level: &level})
		if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, h.image("other").Path) || !strings.Contains(e.Message, `device "w"`) {
			t.Errorf("level %d: %q", level, e.Message)
		}
	}
	_, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: ploop.ImageRef{Path: h.dir + "/none"}})
	wantCode(t, err, api.CodeImage)
	_, err = h.Replace(ctx, "v", api.ReplaceRequest{Image: ploop.ImageRef{Path: "relative"}})
	wantCode(t, err, api.CodeInvalid)
	for _, level := range []int{-1, 2, 1 << 40} {
		_, err = h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new"), Level: &level})
		wantCode(t, err, api.CodeInvalid)
	}
	_, err = h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new"), Drain: -1})
	wantCode(t, err, api.CodeInvalid)
	_, err = h.Replace(ctx, "u", api.ReplaceRequest{Image: h.image("new")})
	wantCode(t, err, api.CodeNotFound)
	h.k.set(func() {
		h.k.replaceErr = &ploop.FormatError{File: "x", Offset: 64, What: "BAT", Found: "1", Want: "2", Class: ploop.ErrDiverged}
	})
	_, err = h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new")})
	if e := wantCode(t, err, api.CodeImage); !strings.Contains(e.Message, "--force") {
		t.Errorf("%q", e.Message)
	}
	h.k.set(func() { h.k.replaceErr = stack.ErrInFlight })
	_, err = h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new")})
	wantCode(t, err, api.CodeBusy)
	if got := h.record("v"); got.Generation != before.Generation || got.Spec.Images[1] != before.Spec.Images[1] {
		t.Errorf("a failed replacement changed the record: %+v", got)
	}
	h.k.set(func() { h.k.replaceErr = nil })
	dev, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new"), Force: true, Drain: api.Duration(time.Second)})
	if err != nil || dev.Images[1].Path != h.image("new").Path {
		t.Fatalf("%+v, %v", dev, err)
	}
	if r := h.k.device("v").replaced; len(r) != 1 || !r[0].Force || r[0].Drain != time.Second {
		t.Errorf("asked for %+v", r)
	}
	got := h.record("v")
	if got.Generation != before.Generation+1 || got.Spec.Images[1] != h.image("new") || got.Images[1] == before.Images[1] || got.Images[0] != before.Images[0] {
		t.Errorf("record %+v", got)
	}
	// The old file is free, the new one taken; a death finds the new one.
	h.create("x", "top")
	_, err = h.Create(ctx, h.spec("y", "new"))
	wantCode(t, err, api.CodeConflict)
	h.restart("v")
	h.eventually("v", api.StateLost)
	h.create("v", "base", "new")
}

// TestReplaceByHungFile asks for a file in storage that hangs: whoever does so is told in
// time.
func TestReplaceByHungFile(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	_, err := answered(10*time.Millisecond, ploop.ImageRef{Path: "/mnt/dead/file"}, func() ([]state.ImageID, error) { <-hang; return nil, nil })
	if e := wantCode(t, err, api.CodeImage); !strings.Contains(e.Message, "/mnt/dead/file") || !strings.Contains(e.Message, "umount -f") {
		t.Errorf("%q", e.Message)
	}
}

// TestQuestionsThatHang gives a file in hung storage again and again: few questions hang with
// it, others are answered, and so is this one when the storage has come back.
func TestQuestionsThatHang(t *testing.T) {
	image := ploop.ImageRef{Path: "/hung"}
	hang := make(chan struct{})
	before := runtime.NumGoroutine()
	for i := range 20 {
		_, err := answered(time.Millisecond, image, func() ([]state.ImageID, error) { <-hang; return nil, nil })
		if want := "earlier questions"; err == nil || (i >= mostQuestions) != strings.Contains(err.Error(), want) {
			t.Fatalf("question %d: %v", i, err)
		}
	}
	if n := runtime.NumGoroutine() - before; n > mostQuestions {
		t.Errorf("20 questions that hang are %d goroutines", n)
	}
	if _, err := answered(time.Minute, ploop.ImageRef{Path: "/other"}, func() ([]state.ImageID, error) { return nil, nil }); err != nil {
		t.Error(err)
	}
	close(hang)
	waitFor(t, "an answer", func() bool {
		_, err := answered(time.Minute, image, func() ([]state.ImageID, error) { return nil, nil })
		return err == nil
	})
}

// TestReplaceNotDurable: a file that would be forgotten isn't taken.
func TestReplaceNotDurable(t *testing.T) {
	h := newHost(t)
	h.create("v", "i")
	h.unwritable(func() {
		_, err := h.Replace(ctx, "v", api.ReplaceRequest{Image: h.image("new")})
		wantCode(t, err, api.CodeInternal)
	})
	if dev, err := h.Device(ctx, "v"); err != nil || dev.Images[0].Path != h.image("i").Path {
		t.Errorf("%+v, %v", dev, err)
	}
	if rec := h.record("v"); rec.Spec.Images[0].Path != h.image("i").Path {
		t.Errorf("%+v", rec.Spec)
	}
	h.create("w", "new") // which is free
}
