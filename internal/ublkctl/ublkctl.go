// Package ublkctl opens the kernel's ublk driver when it is first needed.
package ublkctl

import (
	"sync"

	"holdfast/api"
	"holdfast/ublk"
)

// An Opener has the driver's control device, once it could be opened. It tries anew each time, so that a modprobe
// needs no restart of the process.
type Opener struct {
	mu  sync.Mutex
	ctl *ublk.Control // nil until it could be opened
}

// Control is the control device. The error's code is api.CodeDriver.
func (o *Opener) Control() (*ublk.Control, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctl == nil {
		ctl, err := ublk.Open("")
		if err != nil {
			return nil, api.Errorf(api.CodeDriver, "%w", err)
		}
		o.ctl = ctl
	}
	return o.ctl, nil
}

// Ready is nil when devices can be made, else what is missing.
func (o *Opener) Ready() error {
	_, err := o.Control()
	return err
}

// Close gives it back; Control opens it again.
func (o *Opener) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctl != nil {
		o.ctl.Close()
		o.ctl = nil
	}
}
