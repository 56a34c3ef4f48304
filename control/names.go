package control

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"holdfast/api"
)

// diskForm is how the kernel calls our disks. No device is named so (device.Spec).
var diskForm = regexp.MustCompile(`^ublkb([0-9]+)$`)

// resolve is the name of the device that a client means: by its name, or by the kernel's, as
// in ublkb0. A disk of ours that has no record is called by the kernel's name only.
func (d *Daemon) resolve(name string) (string, error) {
	m := diskForm.FindStringSubmatch(name)
	if m == nil {
		return name, nil
	}
	id, err := strconv.Atoi(m[1])
	if err != nil || fmt.Sprint(id) != m[1] {
		return "", api.Errorf(api.CodeNotFound, "there is no device %q", name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.orphans[id]; ok {
		return name, nil
	}
	var found []string
	for _, s := range d.slots {
		switch {
		case s.dev != nil && s.dev.ID() == id:
		// Other records have a number that may be somebody else's by now.
		case s.dev == nil && s.rec != nil && s.rec.ID == id && s.rec.BootID == d.boot && (s.phase == api.StateRecovering || s.phase == api.StateCreating):
		default:
			continue
		}
		found = append(found, s.name)
	}
	switch len(found) {
	case 0:
		return "", api.Errorf(api.CodeNotFound, "no device of this daemon is /dev/%s: 'holdfast list' shows those that there are", name)
	case 1:
		return found[0], nil
	}
	return "", api.Errorf(api.CodeConflict, "/dev/%s may be any of the devices %s: give a name", name, strings.Join(found, ", "))
}

// named is a handler of requests about a device, whose path has its name or the kernel's.
func (d *Daemon) named(serve func(w http.ResponseWriter, r *http.Request, name string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, err := d.resolve(r.PathValue("name"))
		if err != nil {
			replyError(w, err)
			return
		}
		serve(w, r, name)
	}
}
