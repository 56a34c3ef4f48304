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
// limit of time; ownNumber takes a second one, without waiting.) A snapshot takes only
// mu, so listing works while a device hangs in its removal. A removal goes on
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
//
// # The API
//
// HTTP with JSON on <run-dir>/control.sock, mode 0600: whoever may open it has
// the daemon's rights. Version 1:
//
//	GET    /v1                     who answers: Daemon
//	GET    /v1/devices             everything: Snapshot; ?users=false: but for who uses devices
//	POST   /v1/devices             create from a device.Spec (image paths absolute): Device
//	GET    /v1/devices/NAME        one device: Device; ?users=false as above
//	GET    /v1/devices/NAME/wait   Device, once it is in a state; ?state=S&state=S
//	DELETE /v1/devices/NAME        remove; ?force=true: also if it is in use
//	POST   /v1/devices/NAME/replace          a ReplaceRequest: Device
//	POST   /v1/devices/NAME/recover          a Force: Device
//	PUT    /v1/devices/NAME/standby          a Switch: Device
//	PUT    /v1/devices/NAME/leases/CONSUMER  attach: Device
//	DELETE /v1/devices/NAME/leases/CONSUMER  detach: Device
//	PUT    /v1/standby-check                 a Switch: KeyInfo
//	POST   /v1/upgrade                       an UpgradeRequest: UpgradeResult
//	GET    /v1/attr/PATH                     of the attribute tree: AttrInfo
//	PUT    /v1/attr/PATH                     an AttrValue
//	GET    /v1/events                        device.Events, one a line; ?follow=true, ?device=NAME
//	GET    /metrics                          for Prometheus
//
// NAME is a device's, or the kernel's name of its disk (ublkb0).
//
// An error has a status of 400 or more and a body {"error": text, "code": code};
// the codes are this package's Code constants. Fields are added, never renamed
// or given another meaning; a client ignores what it doesn't know, a server
// refuses a spec with unknown fields rather than serve something else than was
// asked for.
package control
