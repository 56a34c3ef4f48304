package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/api"
)

// refused has a device b be refused, as a has what it wants.
func (h *host) refused(spec api.Spec) {
	h.t.Helper()
	_, err := h.Create(ctx, spec)
	if e := wantCode(h.t, err, api.CodeConflict); !strings.Contains(e.Message, `belongs to device "a"`) || !strings.Contains(e.Message, spec.Images[0].Path) {
		h.t.Errorf("%q", e.Message)
	}
	if len(h.k.live) != 1 {
		h.t.Errorf("served: %v", h.k.live)
	}
}

// TestClaims: no two devices have a file that one of them writes to, by whatever path.
func TestClaims(t *testing.T) {
	h := newHost(t)
	h.create("a", "base", "top")
	dir := filepath.Join(h.dir, "dir")
	if err := errors.Join(os.Symlink(h.dir, dir), os.Symlink(h.image("top").Path, filepath.Join(h.dir, "soft")), os.Link(h.image("top").Path, filepath.Join(h.dir, "hard"))); err != nil {
		t.Fatal(err)
	}
	h.refused(h.spec("b", "top"))
	h.refused(h.spec("b", "base"))
	h.refused(h.spec("b", "soft"))
	h.refused(h.spec("b", "hard"))
	h.refused(h.spec("b", "dir/top"))
	h.refused(h.spec("b", "top", "b.top"))
	reader := h.spec("b", "top")
	reader.ReadOnly = true
	h.refused(reader)
	// A base has many readers.
	h.create("b", "base", "b.top")
	reader = h.spec("c", "base")
	reader.ReadOnly = true
	if _, err := h.Create(ctx, reader); err != nil {
		t.Errorf("two readers of one image: %v", err)
	}
	for _, name := range []string{"b", "c", "a"} {
		if err := h.Remove(ctx, name, false); err != nil {
			t.Error(err)
		}
	}
	h.create("b", "base") // which is nobody's now
}

// TestClaimsEnd: what a device doesn't have any more another can have.
func TestClaimsEnd(t *testing.T) {
	for name, end := range map[string]func(h *host){
		"removal": func(h *host) {
			if err := h.Remove(ctx, "a", false); err != nil {
				h.t.Error(err)
			}
		},
		"stop": func(h *host) { h.stop("a") },
		"kill": func(h *host) { h.kill("a") },
		"leaving": func(h *host) {
			if err := h.Leave(ctx, "a"); err != nil {
				h.t.Error(err)
			}
		},
		"replacement": func(h *host) {
			if _, err := h.Replace(ctx, "a", api.ReplaceRequest{Image: h.image("new")}); err != nil {
				h.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.create("a", "i")
			h.refused(h.spec("b", "i"))
			end(h)
			h.create("b", "i")
		})
	}
	t.Run("creation that failed", func(t *testing.T) {
		h := newHost(t)
		h.create("a", "a")
		h.lose("a")
		h.k.setOpenErr(errors.New("not today"))
		if _, err := h.Create(ctx, h.spec("a", "a")); err == nil { // its server goes on
			t.Error("no error")
		}
		h.k.setOpenErr(nil)
		h.create("b", "a")
	})
	t.Run("creation that was refused", func(t *testing.T) {
		h := newHost(t)
		h.create("a", "a")
		_, err := h.Create(ctx, h.spec("b", "free", "a"))
		wantCode(t, err, api.CodeConflict)
		h.create("c", "free")
	})
}

// TestReplacementClaims: the new file is the device's from its replacement on, and the old one is
// not.
func TestReplacementClaims(t *testing.T) {
	h := newHost(t)
	h.create("a", "base", "i")
	h.create("b", "j")
	if err := os.Link(h.image("j").Path, filepath.Join(h.dir, "hard")); err != nil {
		t.Fatal(err)
	}
	_, err := h.Replace(ctx, "a", api.ReplaceRequest{Image: h.image("hard")})
	if e := wantCode(t, err, api.CodeConflict); !strings.Contains(e.Message, `"b"`) {
		t.Errorf("%q", e.Message)
	}
	h.k.set(func() { h.k.replaceErr = errors.New("not today") })
	if _, err := h.Replace(ctx, "a", api.ReplaceRequest{Image: h.image("new")}); err == nil {
		t.Error("no error")
	}
	h.k.set(func() { h.k.replaceErr = nil })
	h.create("c", "new")
	if err := h.Remove(ctx, "c", false); err != nil {
		t.Fatal(err)
	}
	// By a file of its own, which is so after a move.
	if err := os.Rename(h.image("i").Path, filepath.Join(h.dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Replace(ctx, "a", api.ReplaceRequest{Image: h.image("moved")}); err != nil {
		t.Fatal(err)
	}
	_, err = h.Create(ctx, h.spec("c", "moved"))
	wantCode(t, err, api.CodeConflict)
	if _, err := h.Replace(ctx, "a", api.ReplaceRequest{Image: h.image("new")}); err != nil {
		t.Fatal(err)
	}
	_, err = h.Create(ctx, h.spec("c", "new"))
	wantCode(t, err, api.CodeConflict)
	_, err = h.Create(ctx, h.spec("c", "base"))
	wantCode(t, err, api.CodeConflict)
	h.create("c", "moved")
}

// TestRecoveryClaims: a file that another device got meanwhile isn't served until that has given
// it up.
func TestRecoveryClaims(t *testing.T) {
	h := newHost(t)
	h.create("a", "i")
	h.kill("a")
	h.create("b", "i")
	waitFor(t, "the refusal", func() bool {
		dev := h.eventually("a", api.StateRecovering)
		return strings.Contains(dev.Problem, `belongs to device "b"`)
	})
	// So it is with a file that is to be taken instead.
	h.create("c", "j")
	_, err := h.Replace(ctx, "a", api.ReplaceRequest{Image: h.image("j")})
	wantCode(t, err, api.CodeConflict)
	if err := h.Remove(ctx, "b", false); err != nil {
		t.Fatal(err)
	}
	h.eventually("a", api.StateLive)
	_, err = h.Create(ctx, h.spec("b", "i"))
	wantCode(t, err, api.CodeConflict)
}
