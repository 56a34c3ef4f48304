package api

import "time"

// Event is something that happened to a device.
type Event struct {
	Time    time.Time `json:"time"`
	Device  string    `json:"device"`
	Kind    string    `json:"kind"` // one of the Event constants
	Message string    `json:"message"`
	// Seq numbers a device's events, from 1 on, as long as its journal has the same instance;
	// 0: it isn't of a journal.
	Seq uint64 `json:"seq,omitempty"`
	// Missed, of EventJournal and EventMissed: how many events the reader did not get.
	Missed uint64 `json:"missed,omitempty"`
}

// Kinds of events.
const (
	EventCreated       = "created"
	EventServed        = "served" // taken over from a server that is gone
	EventRemoved       = "removed"
	EventParked        = "parked"          // a request waits for space
	EventUnparked      = "unparked"        // none does any more
	EventIOError       = "io-error"        // a request failed
	EventTruncated     = "truncated"       // the top's file became shorter
	EventStandby       = "standby"         // requests are held from now
	EventResumed       = "recovered"       // the hold ended by a resume, and they are served
	EventCleared       = "standby-cleared" // the hold ended, and they failed
	EventKept          = "standby-kept"    // by hand, and not to be ended by a reopening
	EventTimeout       = "standby-timeout" // the hold goes on, and they fail
	EventBadRange      = "bad-range"       // an error is its place's own, and not held
	EventReopenRefused = "reopen-refused"  // the files answer and aren't what they were
	EventReplaced      = "replaced"        // a file was replaced
	EventReplaceFailed = "replace-failed"  // and here it was not
	EventAttached      = "attached"
	EventDetached      = "detached"
	EventInconsistency = "inconsistency" // see standby.Inconsistency
)

// Kinds of events that servers and the manager add to those of devices.
const (
	EventKeyOn      = "standby-check-on"
	EventKeyOff     = "standby-check-off"
	EventTarget     = "target"      // an integration was found, or is gone
	EventHookFailed = "hook-failed" // a program for a device could not be run, or failed
	// Of a device whose server died or left.
	EventRecovering    = "recovering"     // it is to be served again
	EventRecoverFailed = "recover-failed" // an attempt failed, for another reason than the last
	EventUpgradeFailed = "upgrade-failed" // the server before goes on
	EventJournal       = "journal"        // only to a reader of a server: what its journal has
	EventMissed        = "missed"         // only to a reader that is too slow: how many it did not get
)
