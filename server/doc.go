// Package server is the process that serves one device: its record, its lock and claims, its
// images and queues, its leases, its standby, and its own socket.
//
// # One life
//
// [Serve] is a server's life from beginning to end. It takes the device's lock in the run
// directory, which waits for the server before it; opens its socket; reads the record; and then
// is in one [Phase] after the other until it is over. The lock is the baton: a server that dies
// keeps it until its last thread is gone, and with that its last write.
//
// A record is born here (PUT of a spec to an empty server) and ends here (DELETE). It is durable
// before the first image is opened for writing, and goes only after the images were closed
// cleanly. So a record that is there when a server starts means that a server died with that
// device, or left it: if the driver still has it, it is recovered, in the background and for as
// long as it takes; if not, a persistent device is created again, and any other is lost until
// somebody decides.
//
// # What may run at the same time
//
// One operation at a time: Server.turn is taken for the length of it. Server.mu guards what is
// known of the device, and is never held while something blocks, so whoever asks is answered
// while an operation hangs in storage. What may hang runs on a goroutine of its own (inspections)
// and is waited for with a bound. Leases and the switch work beside an operation; Server.recMu
// orders changes of a live device's record.
//
// # What a server doesn't do
//
// It starts no program and mounts nothing, since a process that is started while storage hangs
// inherits the hang. It knows no other device: that no two write to one file is said by claims
// in the run directory. Names, targets, hooks and the attribute tree are the manager's.
package server
