package ublk

import "golang.org/x/sys/unix"

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// mapMemory maps zeroed memory off the Go heap.
func mapMemory(n, flags int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|flags)
}
