package manager

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"holdfast/api"
	"holdfast/internal/httpjson"
)

// diskForm is how the kernel calls our disks. No device is named so (api.Spec).
var diskForm = regexp.MustCompile(`^ublkb([0-9]+)$`)

// resolve is the name of the device that a client means: by its name, or by the kernel's, as
// in ublkb0. A disk of ours that has no record is called by the kernel's name only.
func (m *Manager) resolve(name string) (string, error) {
	form := diskForm.FindStringSubmatch(name)
	if form == nil {
		return name, nil
	}
	id, err := strconv.Atoi(form[1])
	if err != nil || fmt.Sprint(id) != form[1] {
		return "", api.Errorf(api.CodeNotFound, "there is no device %q", name)
	}
	if _, ok := m.orphans.get(id); ok {
		return name, nil
	}
	switch found := m.peers.numbered(id); len(found) {
	case 0:
		return "", api.Errorf(api.CodeNotFound, "no device of this manager is /dev/%s: 'holdfast list' shows those that there are", name)
	case 1:
		return found[0], nil
	default:
		return "", api.Errorf(api.CodeConflict, "/dev/%s may be any of the devices %s: give a name", name, strings.Join(found, ", "))
	}
}

// numbered are the devices that have a number in the driver, as far as is known. Other records have
// a number that may be somebody else's by now.
func (ps *peers) numbered(id int) (names []string) {
	for _, p := range ps.list() {
		o := p.observation()
		if n, ok := o.number(); ok && n == id {
			names = append(names, p.name)
		}
	}
	return names
}

// named is a handler of requests about a device, whose path has its name or the kernel's.
func (f *front) named(serve func(w http.ResponseWriter, r *http.Request, name string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, err := f.m.resolve(r.PathValue("name"))
		if err != nil {
			httpjson.Error(w, err)
			return
		}
		serve(w, r, name)
	}
}
