package api

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Why says in sentences what state a device is in, and why: for a person who has to decide
// what to do. It knows no more than the two pictures that it is given.
func Why(dev *Device, key *KeyInfo) []string {
	w := why{dev: dev, key: key, s: &dev.Standby}
	switch dev.State {
	case StateStandby, StateFailing:
		w.standby()
	case StateReplacing:
		w.say("%s holds its requests since %s while a file below it is being replaced; %d wait.", dev.Name, Clock(dev.Since), w.s.Held)
		if w.s.LastError != "" {
			w.say("The last attempt failed: %s.", w.s.LastError)
			w.say("If that took its lock away, it holds until 'holdfast replace %s FILE' gives it a file that it can have for itself.", dev.Name)
		}
	case StateParked:
		w.say("%s is live, but %d requests wait since %s for space in the storage of %s; the others are served.", dev.Name, dev.Counters.Parked, Clock(dev.Since), w.top())
		w.say("Free some space there: they are tried again, at least every 20 seconds.")
	case StateStopped:
		w.say("The block device of %s was taken away by somebody else; 'holdfast remove %s' closes its images.", dev.Name, dev.Name)
	case StateHung:
		w.say("%s is hung since %s: a request has not come back for %s. %s", dev.Name, Clock(dev.Since), age(w.oldest().Seconds), w.whereHung())
		w.hung()
	case StateLive:
		w.say("%s is live since %s: requests are served.", dev.Name, Clock(dev.Since))
		if o := dev.Oldest; o != nil && o.Seconds >= 1 {
			w.say("The oldest under way came %s ago. %s", age(o.Seconds), w.whereHung())
		}
	default:
		w.say("%s is %s.", dev.Name, dev.State)
	}
	if dev.State != StateLost && dev.State != StateCreating && dev.State != StateWaiting {
		w.fuses()
	}
	if w.s.Stuck > 0 {
		w.say("%d requests have not come back from files that were replaced, the oldest came %s ago; each is served anew when it does. If that storage is gone for good, abort its mount (umount -f).", w.s.Stuck, age(w.s.StuckSeconds))
	}
	for _, b := range w.s.BadRanges {
		w.say("Errors of this place of its files are its own and go to its users, while the rest is served: %s. Copy the image to other storage, and 'holdfast replace %s FILE --level %d'.", b, dev.Name, b.Level)
	}
	w.displaced()
	if dev.Problem != "" && !adviseOnly[dev.State] && !slices.ContainsFunc(dev.Displaced, func(d Displaced) bool { return d.String() == dev.Problem }) {
		w.say("Problem: %s; %s.", dev.Problem, dev.Advice)
	}
	return w.text
}

type why struct {
	dev  *Device
	key  *KeyInfo
	s    *StandbyStatus
	text []string
}

func (w *why) say(format string, args ...any) { w.text = append(w.text, fmt.Sprintf(format, args...)) }

func (w *why) top() string {
	if n := len(w.dev.Images); n > 0 {
		return fmt.Sprintf("%q", w.dev.Images[n-1].Path)
	}
	return "its image"
}

func (w *why) standby() {
	dev, s := w.dev, w.s
	since := "an unknown time"
	if s.Since != nil {
		since = Clock(*s.Since)
	}
	if s.Expired {
		w.say("%s is in standby since %s, longer than its time-out: requests fail with EIO.", dev.Name, since)
	} else {
		w.say("%s is in standby since %s: it processes nothing, and holds %d requests of at most %d%s.", dev.Name, since, s.Held, s.Tags, oldestHeld(s))
	}
	switch {
	case s.Errno == "":
		w.say("It was put there by hand.")
	case s.ByHand:
		w.say("The storage answered %s: %s. Since then it was also put there by hand.", s.Errno, s.Cause)
	default:
		w.say("The storage answered %s: %s.", s.Errno, s.Cause)
	}
	w.say("%s will wait for it: %s.", plural(len(s.Consumers), "consumer"), OrNobody(s.Consumers))
	if s.Deadline != nil && !s.Expired {
		w.say("If it lasts until %s, what is held fails with EIO, and so do new requests.", Clock(*s.Deadline))
	}
	if s.Resume == ResumeReopen && !s.ByHand {
		next := "one is under way"
		if s.NextAttempt != nil {
			next = "the next is at " + Clock(*s.NextAttempt)
		}
		w.say("It resumes by reopening the same files: %d attempts so far, %s.", s.Attempts, next)
	}
	if s.LastError != "" {
		w.say("The last attempt failed: %s.", s.LastError)
	}
	if s.ByHand {
		w.say("To go on: %s.", w.dev.Advice)
	} else {
		w.say("To go on: bring the storage of %s back, then %s.", w.top(), w.dev.Advice)
	}
	w.say("To give up: 'holdfast standby %s off' fails everything that is held.", dev.Name)
}

// adviseOnly are the states whose Problem and Advice repeat what is said at length.
var adviseOnly = map[string]bool{StateStandby: true, StateFailing: true, StateHung: true}

func oldestHeld(s *StandbyStatus) string {
	if s.Held == 0 {
		return ""
	}
	return fmt.Sprintf(", the oldest for %s", age(s.HeldSeconds))
}

func (w *why) oldest() *OldestRequest {
	if w.dev.Oldest == nil {
		return &OldestRequest{At: AtQueue}
	}
	return w.dev.Oldest
}

// whereHung says where the oldest request is.
func (w *why) whereHung() string {
	o := w.oldest()
	if o.At == AtQueue {
		return "The thread of its queue doesn't answer, which takes storage that blocks where it should not, or a fault of ours."
	}
	what := "It is a flush"
	if o.Op != "flush" {
		what = fmt.Sprintf("It is a %s of %d bytes at offset %d of the disk", o.Op, o.Length, o.Offset)
	}
	switch {
	case o.At == AtTransfer && o.FileOffset != nil && *o.FileOffset < 0:
		return fmt.Sprintf("%s, which waits for a sync of %q (level %d).", what, o.File, *o.Level)
	case o.At == AtTransfer && o.FileOffset != nil:
		return fmt.Sprintf("%s, under way at offset %d of %q (level %d).", what, *o.FileOffset, o.File, *o.Level)
	case o.At == AtStorage:
		return fmt.Sprintf("%s, on the slow path, in a call to the storage of %s.", what, w.images())
	}
	return fmt.Sprintf("%s, on the slow path, and waits for others that are under way in the storage of %s.", what, w.images())
}

// images are all that a call of the slow path may be about.
func (w *why) images() string {
	var paths []string
	for _, im := range w.dev.Images {
		paths = append(paths, fmt.Sprintf("%q", im.Path))
	}
	if len(paths) == 0 {
		return "its image"
	}
	return strings.Join(paths, ", ")
}

// hung says what can be done for a device whose storage doesn't answer.
func (w *why) hung() {
	file := "FILE"
	if o := w.oldest(); o.Level != nil && *o.Level < len(w.dev.Images)-1 {
		file = fmt.Sprintf("FILE --level %d", *o.Level)
	}
	w.say("That is not standby: the storage gave no error. %d requests are in flight; they go on by themselves when the storage answers.", w.dev.Counters.InFlight)
	w.say("If it won't: abort its mount (umount -f, or 1 into /sys/fs/fuse/connections/N/abort), which turns silence into an error, and into standby where that is on.")
	w.say("Or give it a file that answers: 'holdfast replace %s %s' waits for what is under way for %v at most, and does it anew on the new file. Where writes may still be on their way to the same file it refuses, until the old mount is cut off; --force says that it is.", w.dev.Name, file, DefaultDrain)
}

// displaced says of which images the file that is served is not the one at their path.
func (w *why) displaced() {
	for _, d := range w.dev.Displaced {
		switch text := d.String() + "."; d.How {
		case PathGone, PathOther:
			w.say("%s Its data is served all the same, but the next upgrade, recovery or reopening opens what is at the path. Put the file back there, or 'holdfast replace %s FILE --level %d' with its new path, or copy the data out of %s while it is served.", upper(text), w.dev.Name, d.Level, w.dev.Path)
		default:
			w.say("%s", upper(text))
		}
	}
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// age is a time in whole seconds, as people write it.
func age(seconds float64) string {
	return (time.Duration(seconds) * time.Second).String()
}

// fuses says whether the next error of the storage will be held.
func (w *why) fuses() {
	s := w.s
	switch {
	case s.Value != "not supported":
		if w.dev.State == StateLive || w.dev.State == StateHung {
			w.say("If its storage fails, requests will be held: the standby check is on (%s), and leases are held by %s.", OrNobody(w.key.Holders), OrNobody(s.Consumers))
		}
		return
	case !w.key.On && !s.Enabled:
		w.say("Errors of its storage reach its users at once: the standby check is off, and no consumer has a lease. 'holdfast standby-check on' and 'holdfast attach %s --consumer NAME' change that; a target does both by itself.", w.dev.Name)
	case !w.key.On:
		w.say("Errors of its storage reach its users at once, although %s has a lease: the standby check is off. 'holdfast standby-check on' turns it on.", OrNobody(s.Consumers))
	default:
		w.say("Errors of its storage reach its users at once: no consumer has a lease. 'holdfast attach %s --consumer NAME' takes one; a target does so by itself.", w.dev.Name)
	}
	if s.Flag {
		w.say("It is marked in standby all the same, which has no effect now; 'holdfast standby %s off' clears the mark.", w.dev.Name)
	}
}

// Advise fills in what is wrong with a live device, and what to do.
func Advise(dev *Device) {
	s := &dev.Standby
	switch dev.State {
	case StateStandby:
		dev.Problem = fmt.Sprintf("in standby since %s, %d of %d requests held: %s", Clock(dev.Since), s.Held, s.Tags, s.Cause)
	case StateFailing:
		dev.Problem = fmt.Sprintf("its standby has timed out at %s and requests fail: %s", Clock(dev.Since), s.Cause)
	case StateHung:
		w := why{dev: dev, s: s}
		dev.Problem = fmt.Sprintf("hung since %s, %s: %s", Clock(dev.Since), plural(int(dev.Counters.InFlight), "request")+" in flight", strings.TrimSuffix(w.whereHung(), "."))
		dev.Advice = fmt.Sprintf("bring its storage back, or abort its mount, or 'holdfast replace %s --top FILE'; 'holdfast why %s' tells more", dev.Name, dev.Name)
		return
	default:
		for _, d := range dev.Displaced {
			if d.How == PathGone || d.How == PathOther {
				dev.Problem, dev.Advice = d.String(), fmt.Sprintf("'holdfast why %s' tells what to do", dev.Name)
			}
		}
		return
	}
	top := "FILE"
	if n := len(dev.Images); n > 0 {
		top = dev.Images[n-1].Path
		if strings.ContainsAny(top, " \t\n'\"\\") {
			top = fmt.Sprintf("%q", top)
		}
	}
	dev.Advice = fmt.Sprintf("'holdfast replace %s --top %s', or the same file by another path", dev.Name, top)
	switch {
	case s.ByHand:
		dev.Advice = fmt.Sprintf("'holdfast replace %s --top %s' ends it, by the same file or a copy", dev.Name, top)
	case s.Resume == ResumeReopen:
		dev.Advice = fmt.Sprintf("nothing needs to be done if the same files return, else 'holdfast replace %s --top FILE'", dev.Name)
	}
}

// Clock is a time as people are told it: local, to a second.
func Clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// OrNobody joins names, and says "nobody" for none.
func OrNobody(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}
