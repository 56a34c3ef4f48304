package server

import "time"

// times are those that a server takes for things. Tests have others.
type times struct {
	idle     time.Duration // a server stays that has nothing to serve, and that nobody wants anything of
	stopPoll time.Duration // between tries to take a device away at the end that is in use
	settle   time.Duration // a removal waits for udev's own visit to the device
	inspect  time.Duration // the storage of images may take to answer an inspection
	closing  time.Duration // the end waits for what the server does in the background
	answers  time.Duration // and for answers that are under way
	mounts   time.Duration // a look at the table of mounts waits
}

var usualTimes = times{
	idle:     30 * time.Second,
	stopPoll: time.Second,
	settle:   10 * time.Second,
	inspect:  10 * time.Second,
	closing:  5 * time.Second,
	answers:  2 * time.Second,
	mounts:   500 * time.Millisecond,
}
