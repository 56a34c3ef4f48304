//go:build !failpoints

package failpoint

// Enabled says whether the program was built with failpoints.
const Enabled = false

// Hit dies if the place is armed.
func Hit(name string) {}

// Armed is Hit that leaves the dying to the caller, who has something to do before, and
// then calls Die.
func Armed(name string) bool { return false }

// Die ends the process as kill -9 does.
func Die(name string) {}

// Off says that a protection is switched off.
func Off(name string) bool { return false }
