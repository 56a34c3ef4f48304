package device

import "time"

// parkTime is how long a request without space waits before it is tried again:
// dm-ploop's interval.
var parkTime = 20 * time.Second

// park counts a request for which the storage has no space.
func (d *Device) park(err error) {
	if d.parked.Add(1) == 1 {
		d.parkedSince.Store(time.Now().UnixNano())
		d.tell(EventParked, "%v; requests wait, are tried again every %v, and go on when space is freed", err, parkTime)
	}
}

func (d *Device) unpark() {
	if d.parked.Add(-1) == 0 {
		d.flowing()
		d.tell(EventUnparked, "no request waits for space any more")
	}
}

// waitForSpace returns when a parked request should be tried again; false: the device
// is being removed.
func (d *Device) waitForSpace() bool {
	t := time.NewTimer(parkTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.spaceSignal():
	case <-d.closing:
		return false
	}
	return true
}

func (d *Device) spaceSignal() <-chan struct{} {
	d.spaceMu.Lock()
	defer d.spaceMu.Unlock()
	return d.space
}

// spaceFound wakes what is parked: another request was just served, perhaps a
// discard.
func (d *Device) spaceFound() {
	if d.parked.Load() == 0 {
		return
	}
	d.spaceMu.Lock()
	close(d.space)
	d.space = make(chan struct{})
	d.spaceMu.Unlock()
}
