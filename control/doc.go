// Package control is the daemon's core: it keeps the devices that one host
// serves, writes down what it is about to do before it does it, and answers the
// command line over a unix socket.
//
// # Names, records, and whose crash it was
//
// A device has a name, and everything about a name happens one after the other:
// two creates of it, or a remove during a create, wait for each other. Different
// names don't. Under <state-dir>/devices each device has a record NAME.json with
// its spec, its number, the boot it belongs to and the identity of its files. It
// is durable before the first image is opened for writing, and goes only after
// the images were closed cleanly.
//
// So a record that is there when the daemon starts means that *our* daemon died
// with that device. Its images are marked in use, and that mark is ours to
// overrule; on any other image it is a stranger's, and the image engine refuses
// it. Such a device is listed in state "lost" until somebody decides: create
// with the same name and images serves it again, remove closes its images
// cleanly and forgets it. A record that can't be read is put aside as
// NAME.json.damaged and reported; it never keeps the daemon from starting.
//
// # What may run at the same time
//
// Daemon.mu guards the table of names and is never held while something blocks.
// Each name has a token (slot.op), taken for the length of one operation, always
// before mu and never two at once: no order to get wrong. (An upgrade takes them all, with a
// limit of time.) A snapshot takes only mu, so listing works while a device hangs in its removal. A removal goes on
// when the client that asked for it hangs up; a creation is taken back.
//
// # Standby
//
// The daemon owns the process-wide key. Leases that are taken by hand are in the
// device's record, durably before they are acted on, and come back with a lost device; targets
// take theirs again when they are seen. A replacement is in the record before anything
// is served from the new file. A live device's record is changed under slot.recMu, beside
// whatever operation holds the name's token: a lease can be dropped while a
// replacement hangs.
package control
