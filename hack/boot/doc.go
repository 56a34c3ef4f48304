// Package boot tests the units, rules and modules' settings of systemd/ with Debian's systemd: in a
// VM that boots it, goes down with file systems mounted on our devices, and boots again.
//
//	go run ./hack/vm -systemd -disk 2G -disk 2G -test ./hack/boot
//
// (make boot). With -env HOLDFAST_BOOT_CONTROL=1 the daemon is ordered as one would at first, after
// local file systems, and there must be trouble at shutdown.
//
// With -env HOLDFAST_BOOT_LAUNCH=1 only the units of servers are tested (manager/launch), which needs no driver.
//
// The tests run at each boot; what is to be done is in a file on the first disk, which keeps the
// root's changes. The second disk is the images' file system.
package boot
