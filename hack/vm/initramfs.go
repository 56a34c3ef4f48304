package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// cpioWriter writes an archive in the "newc" format (Documentation/
// driver-api/early-userspace/buffer-format.rst in the kernel), the one that
// the kernel unpacks as its initramfs.
type cpioWriter struct {
	w    io.Writer
	ino  int
	dirs map[string]bool
	err  error
}

// File modes: the types of stat(2).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioChar = 0o020000
)

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{"": true, ".": true}}
}

func (c *cpioWriter) entry(name string, mode uint32, major, minor uint32, data []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	// 110 bytes of header, then the name with its NUL, padded to four bytes
	// counted from the header's start; then the data, padded as well.
	h := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	_, c.err = io.WriteString(c.w, h+name+"\x00"+pad(len(h)+len(name)+1))
	if c.err == nil {
		_, c.err = c.w.Write(data)
	}
	if c.err == nil {
		_, c.err = io.WriteString(c.w, pad(len(data)))
	}
}

func pad(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// dir writes a directory and the ones above it, once: the kernel doesn't make
// missing ones.
func (c *cpioWriter) dir(name string) {
	name = strings.Trim(name, "/")
	if c.dirs[name] {
		return
	}
	c.dir(path.Dir(name))
	c.dirs[name] = true
	c.entry(name, cpioDir|0o755, 0, 0, nil)
}

func (c *cpioWriter) file(name string, perm uint32, data []byte) {
	name = strings.Trim(name, "/")
	c.dir(path.Dir(name))
	c.entry(name, cpioFile|perm, 0, 0, data)
}

func (c *cpioWriter) charDevice(name string, major, minor uint32) {
	name = strings.Trim(name, "/")
	c.dir(path.Dir(name))
	c.entry(name, cpioChar|0o600, major, minor, nil)
}

func (c *cpioWriter) copyFile(name string, perm uint32, from string) {
	data, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, perm, data)
}

func (c *cpioWriter) close() error {
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.err
}
