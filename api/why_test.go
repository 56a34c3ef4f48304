package api

import (
	"strings"
	"testing"
	"time"

	"holdfast/ploop/image"
)

// explained is what a person gets to read of a device.
func explained(dev *Device, key *KeyInfo) string {
	Advise(dev)
	return strings.Join([]string{dev.Problem, dev.Advice, strings.Join(Why(dev, key), " ")}, " ")
}

func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q doesn't say %q", text, w)
		}
	}
}

func saysNot(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if strings.Contains(text, w) {
			t.Errorf("%q says %q", text, w)
		}
	}
}

// a device of two images.
func aDevice(state string) *Device {
	return &Device{Status: Status{Name: "v", State: state, Path: "/dev/ublkb3", Since: time.Now(),
		Images: []image.Status{{Path: "/img/base", Level: 0}, {Path: "/img/top", Level: 1}}}}
}

// TestWhyFuses: a device that is live says what an error of its storage will do.
func TestWhyFuses(t *testing.T) {
	dev := aDevice(StateLive)
	dev.Standby.Value = "not supported"
	says(t, explained(dev, &KeyInfo{}), "v is live since", "reach its users at once", "the standby check is off", "standby-check on", "attach v")
	says(t, explained(dev, &KeyInfo{On: true}), "reach its users at once", "no consumer has a lease", "attach v")
	dev.Standby.Flag = true
	says(t, explained(dev, &KeyInfo{On: true}), "marked in standby all the same", "standby v off")
	dev.Standby.Flag, dev.Standby.Enabled, dev.Standby.Consumers = false, true, []string{"c"}
	says(t, explained(dev, &KeyInfo{}), "although c has a lease", "standby-check on")
	dev.Standby.Value = "off"
	text := explained(dev, &KeyInfo{On: true, Holders: []string{"hand", "lio"}})
	says(t, text, "will be held", "hand, lio", "leases are held by c")
	saysNot(t, text, "reach its users")
	dev.Oldest = &OldestRequest{Seconds: 3, At: AtStorage, Op: "read", Length: 512}
	says(t, explained(dev, &KeyInfo{}), "oldest under way came 3s ago", "read of 512 bytes at offset 0 of the disk", `"/img/base", "/img/top"`)
	for state, word := range map[string]string{StateLost: "v is lost.", StateWaiting: "v is waiting.", StateCreating: "v is creating."} {
		dev.State = state
		text := explained(dev, &KeyInfo{})
		says(t, text, word)
		saysNot(t, text, "lease") // nobody's requests are served
	}
}

// TestWhyStandby: whoever asks is told since when, why, what is held and until when, and how to
// end it.
func TestWhyStandby(t *testing.T) {
	dev, since := aDevice(StateStandby), time.Now().Add(-time.Minute)
	dev.Standby = StandbyStatus{Value: "on", Flag: true, Since: &since, Errno: "ENOSPC", Cause: `write of "/img/top"`, Held: 2, HeldSeconds: 61, Tags: 128,
		Consumers: []string{"a", "b"}, Resume: ResumeManual}
	text := explained(dev, &KeyInfo{On: true})
	says(t, text, "in standby since "+Clock(since), "holds 2 requests of at most 128, the oldest for 1m1s", "answered ENOSPC", "2 consumers will wait for it: a, b", "bring the storage",
		"holdfast replace v --top /img/top", "standby v off", "2 of 128 requests held")
	saysNot(t, text, "If it lasts", "attempts so far", "not supported")
	dev.Standby.Deadline, dev.Standby.LastError = &since, "it is another file"
	says(t, explained(dev, &KeyInfo{On: true}), "If it lasts until "+Clock(since), "last attempt failed: it is another file")
	dev.State, dev.Standby.Expired = StateFailing, true
	text = explained(dev, &KeyInfo{On: true})
	says(t, text, "longer than its time-out: requests fail with EIO", "has timed out")
	saysNot(t, text, "If it lasts")
}

// TestWhyByHand: a standby that somebody wants to be by hand is not said to be on its way to
// be ended by a reopening.
func TestWhyByHand(t *testing.T) {
	since := time.Now()
	dev := aDevice(StateStandby)
	dev.Standby = StandbyStatus{Value: "on", Since: &since, Errno: "EIO", Cause: "a read", Resume: ResumeReopen}
	says(t, explained(dev, &KeyInfo{}), "one is under way", "bring the storage", "nothing needs to be done")
	next := since.Add(time.Minute)
	dev.Standby.NextAttempt, dev.Standby.Attempts = &next, 7
	says(t, explained(dev, &KeyInfo{}), "7 attempts so far, the next is at "+Clock(next))
	dev.Standby.ByHand = true
	text := explained(dev, &KeyInfo{})
	says(t, text, "also put there by hand", "holdfast replace v --top")
	saysNot(t, text, "under way", "nothing needs to be done", "bring the storage", "attempts")
	dev.Standby.Errno, dev.Standby.Cause = "", "by hand"
	says(t, explained(dev, &KeyInfo{}), "It was put there by hand.")
}

// TestWhyReplacing: a device that a failed replacement left closed says how to open it.
func TestWhyReplacing(t *testing.T) {
	dev := aDevice(StateReplacing)
	saysNot(t, explained(dev, &KeyInfo{}), "failed")
	dev.Standby.LastError = "the lock was lost"
	says(t, explained(dev, &KeyInfo{}), "the lock was lost", "holdfast replace v FILE")
}

// TestWhyHung: a device whose storage doesn't answer says where its oldest request is.
func TestWhyHung(t *testing.T) {
	dev, base, top, off, synced := aDevice(StateHung), 0, 1, int64(8192), int64(-1)
	dev.Since = time.Now().Add(-90 * time.Second)
	dev.Counters.InFlight = 3
	o := &OldestRequest{Since: dev.Since, Seconds: 90, At: AtTransfer, Op: "write", Offset: 4096, Length: 512, File: "/img/top", Level: &top, FileOffset: &off}
	dev.Oldest = o
	text := explained(dev, &KeyInfo{})
	says(t, text, "v is hung since "+Clock(dev.Since), "1m30s", "write of 512 bytes at offset 4096 of the disk", `offset 8192 of "/img/top" (level 1)`, "umount -f",
		"holdfast replace v FILE'", "--force", "3 requests in flight", "holdfast why v")
	saysNot(t, text, "are served")
	o.FileOffset = &synced
	says(t, explained(dev, &KeyInfo{}), `a sync of "/img/top"`)
	o.Level = &base
	says(t, explained(dev, &KeyInfo{}), "replace v FILE --level 0'")
	dev.Oldest = &OldestRequest{Seconds: 11, At: AtStorage, Op: "flush"}
	says(t, explained(dev, &KeyInfo{}), "It is a flush, on the slow path, in a call to the storage", `"/img/top"`)
	dev.Oldest = &OldestRequest{Seconds: 11, At: AtWorker, Op: "write", Length: 1}
	says(t, explained(dev, &KeyInfo{}), "waits for others")
	dev.Oldest = &OldestRequest{Seconds: 11, At: AtQueue}
	says(t, explained(dev, &KeyInfo{}), "thread of its queue doesn't answer")
	// What another version leaves out harms nobody.
	dev.Oldest, dev.Images = nil, nil
	says(t, explained(dev, &KeyInfo{}), "doesn't answer")
}

// TestWhyDisplaced: a device whose file is not the one at its path says so once.
func TestWhyDisplaced(t *testing.T) {
	for how, problem := range map[string]bool{PathGone: true, PathOther: true, PathError: false, PathSilent: false} {
		dev := aDevice(StateLive)
		dev.Displaced = []Displaced{{Level: 1, Path: "/img/top", How: how, Error: "EACCES"}}
		Advise(dev)
		if (dev.Problem != "") != problem || (dev.Advice != "") != problem {
			t.Errorf("%s: problem %q, %q", how, dev.Problem, dev.Advice)
		}
		text := strings.Join(Why(dev, &KeyInfo{}), " ")
		words := []string{`"/img/top"`}
		if problem {
			words = append(words, "holdfast replace v FILE --level 1", "copy the data out of /dev/ublkb3")
		}
		for _, w := range words {
			if n := strings.Count(text, w); n != 1 {
				t.Errorf("%s: %q says %q %d times", how, text, w, n)
			}
		}
	}
}

// TestWhyOther: all else that a device has to say.
func TestWhyOther(t *testing.T) {
	dev := aDevice(StateLive)
	dev.Standby.BadRanges = []BadRange{{Op: "read", Level: 1, File: "/img/top", Offset: 8192, Length: 4096, Errno: "EIO"}}
	says(t, explained(dev, &KeyInfo{}), `read of 4096 bytes at offset 8192 of "/img/top" (level 1): EIO`, "replace v FILE --level 1")
	dev = aDevice(StateLive)
	dev.Standby.Stuck, dev.Standby.StuckSeconds = 4, 125
	says(t, explained(dev, &KeyInfo{}), "4 requests have not come back", "2m5s ago", "umount -f")
	dev = aDevice(StateParked)
	dev.Counters.Parked = 5
	says(t, explained(dev, &KeyInfo{}), "5 requests wait", "space", `"/img/top"`)
	dev = aDevice(StateStopped)
	says(t, explained(dev, &KeyInfo{}), "taken away by somebody else", "holdfast remove v")
	// The problem of a state that isn't told at length is.
	dev = aDevice(StateDying)
	dev.Problem, dev.Advice = "process 7 was killed", "abort its mount"
	says(t, strings.Join(Why(dev, &KeyInfo{}), " "), "v is dying.", "Problem: process 7 was killed; abort its mount.")
}
