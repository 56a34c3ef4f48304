package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// poke changes a 32-bit word of an image.
func (d dir) poke(name string, off int, v uint32) {
	d.t.Helper()
	b := d.read(name)
	copy(b[off:], []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
	d.write(name, b)
}

// bundle makes a stack of two images with a descriptor. The base has b at 0, the
// top t at 1M.
func (d dir) bundle() {
	d.t.Helper()
	disk := make([]byte, 4<<20)
	disk[0] = 'b'
	d.write("base.raw", disk)
	disk[0], disk[1<<20] = 0, 't'
	d.write("top.raw", disk)
	d.ok("image", "convert", "raw@base.raw", "base.hds")
	d.ok("image", "convert", "raw@top.raw", "top.hds")
	const none, base, top = "{00000000-0000-0000-0000-000000000000}", "{11111111-0000-0000-0000-000000000000}", "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
	xml := "<Parallels_disk_image><StorageData><Storage>"
	for guid, file := range map[string]string{base: "base.hds", top: "top.hds"} {
		xml += fmt.Sprintf("<Image><GUID>%s</GUID><Type>Compressed</Type><File>%s</File></Image>", guid, file)
	}
	xml += "</Storage></StorageData><Snapshots>"
	for _, s := range [][2]string{{base, none}, {top, base}} {
		xml += fmt.Sprintf("<Shot><GUID>%s</GUID><ParentGUID>%s</ParentGUID></Shot>", s[0], s[1])
	}
	d.write("DiskDescriptor.xml", []byte(xml+"</Snapshots></Parallels_disk_image>"))
}

func TestConvertStack(t *testing.T) {
	d := newDir(t)
	d.bundle()
	// A top alone is copied only by a word that says so.
	d.fails(1, "base.hds", "image", "convert", "top.hds", "out.raw")
	if _, err := os.Stat(d.file("out.raw")); err == nil {
		t.Error("it was copied")
	}
	d.ok("image", "convert", "--alone", "top.hds", "alone.raw")
	d.ok("image", "convert", "base.hds", "top.hds", "out.raw")
	want := make([]byte, 4<<20)
	want[0], want[1<<20] = 'b', 't'
	if !bytes.Equal(d.read("out.raw"), want) {
		t.Error("the copy of the stack differs")
	}
	d.ok("image", "convert", "--to", "ploop", "base.hds", "top.hds", "flat.hds")
	d.ok("image", "convert", "--alone", "--from", "raw", "base.raw", "top.hds", "--to", "raw", "over.raw")
	if !bytes.Equal(d.read("over.raw"), want) {
		t.Error("the copy of a stack over a raw base differs")
	}
	for _, args := range [][]string{{"image", "check", "top.hds"}, {"image", "map", "top.hds"}, {"image", "info", "top.hds"}} {
		if r := d.holdfast(args...); r.code != 0 || !strings.Contains(r.errors, `top.hds" has a parent`) || strings.Count(r.errors, "\n") != 1 {
			t.Errorf("%q: exit %d, %s", args, r.code, r.errors)
		}
	}
	d.ok("image", "check", "base.hds", "top.hds")
}

// TestNotAnImage: nobody is told to take a directory for a raw disk.
func TestNotAnImage(t *testing.T) {
	d := newDir(t)
	d.bundle()
	for _, args := range [][]string{
		{"image", "info", "."}, {"image", "check", "DiskDescriptor.xml"}, {"image", "map", "."},
		{"image", "convert", "DiskDescriptor.xml", "x"}, {"image", "create", "--backing", ".", "x"},
	} {
		d.fails(1, `top image of this one is "top.hds"`, args...)
		if r := d.holdfast(args...); strings.Contains(r.errors, "raw@") {
			t.Errorf("%q: %s", args, r.errors)
		}
	}
	d.write("text", []byte(strings.Repeat("text", 1000)))
	d.fails(1, "raw@FILE", "image", "info", "text")
}

func TestDamagedImages(t *testing.T) {
	d := newDir(t)
	disk := make([]byte, 4<<20)
	disk[0], disk[1<<20], disk[2<<20] = 1, 2, 3
	d.write("in.raw", disk)
	d.ok("image", "convert", "raw@in.raw", "good.hds")
	good := d.read("good.hds")

	// Wrong data_off: the data is found, and the header is mended if asked for.
	d.write("a.hds", good)
	d.poke("a.hds", 48, 1)
	d.fails(1, "--damaged", "image", "convert", "a.hds", "out.raw")
	if r := d.holdfast("image", "convert", "--damaged", "a.hds", "out.raw"); r.code != 0 || !strings.Contains(r.errors, "guessed: the data begins at sector 2048") {
		t.Errorf("exit %d: %s", r.code, r.errors)
	}
	if !bytes.Equal(d.read("out.raw"), disk) {
		t.Error("the copy differs")
	}
	if out := d.ok("image", "info", "a.hds"); !strings.Contains(out, "guessed") {
		t.Error(out)
	}
	if r := d.holdfast("image", "check", "--repair", "a.hds"); r.code != 2 || !strings.Contains(r.out, "--allow data-offset") || !strings.Contains(r.out, "convert") {
		t.Errorf("exit %d: %s", r.code, r.out)
	}
	d.ok("image", "check", "--repair", "--allow", "data-offset", "a.hds")
	if !bytes.Equal(d.read("a.hds"), good) {
		t.Error("the header isn't what it was")
	}
	d.fails(1, "older-data", "image", "check", "--repair", "--allow", "anything", "a.hds")
	d.fails(1, "--repair", "image", "check", "--allow", "older-data", "a.hds")

	// Two entries for one place, and one that leads nowhere.
	d.poke("a.hds", 64+4*3, 1)
	d.poke("a.hds", 64+4*2, 77)
	r := d.holdfast("image", "convert", "--damaged", "a.hds", "out2.raw")
	for _, says := range []string{"bytes 2097152+1048576 of the disk are lost", "bytes 0+1048576", "bytes 3145728+1048576", "out2.raw was made, but"} {
		if r.code != 1 || !strings.Contains(r.errors, says) {
			t.Errorf("exit %d, without %q: %s", r.code, says, r.errors)
		}
	}
	copy(disk[3<<20:], disk[:1<<20])
	clear(disk[2<<20 : 3<<20])
	if !bytes.Equal(d.read("out2.raw"), disk) {
		t.Error("the copy differs")
	}
	if out := d.ok("image", "map", "--damaged", "a.hds"); !strings.Contains(out, "lost") || !strings.Contains(out, "same place") {
		t.Error(out)
	}

	// What a repair can't bring back is said, and is no success.
	d.write("a.hds", good[:len(good)-512<<10])
	if r := d.holdfast("image", "check", "--repair", "a.hds"); r.code != 2 || !strings.Contains(r.out, "lost: a.hds: bytes 2621440+524288 of the disk") {
		t.Errorf("exit %d: %s", r.code, r.out)
	}
	d.ok("image", "check", "a.hds")
	if b := d.read("a.hds"); !bytes.Equal(b, good) { // whose end was zero
		t.Errorf("%d bytes, and differs", len(b))
	}
}

func TestUncommonImages(t *testing.T) {
	d := newDir(t)
	d.fails(1, "--any-cluster-size", "image", "create", "-s", "1M", "-c", "16K", "a.hds")
	d.ok("image", "create", "-s", "1M", "-c", "16K", "--any-cluster-size", "a.hds")
	d.fails(1, "--any-cluster-size", "image", "create", "--backing", "a.hds", "b.hds")
	d.fails(1, "--any-cluster-size", "image", "convert", "a.hds", "b.hds", "--to", "ploop")
	d.ok("image", "convert", "a.hds", "b.hds", "--to", "ploop", "-c", "64K")
	d.write("odd", []byte("odd"))
	d.ok("image", "convert", "raw@odd", "odd.hds")
}

// TestInfoOfOpenImage: an extension of an image that is open isn't said to be the
// work of software that knows none.
func TestInfoOfOpenImage(t *testing.T) {
	d := newDir(t)
	d.ok("image", "create", "-s", "4M", "a.hds")
	d.poke("a.hds", 56, 2048)
	if out := d.ok("image", "info", "a.hds"); !strings.Contains(out, "does not know it") {
		t.Error(out)
	}
	d.poke("a.hds", 44, 0x746F6E59)
	if out := d.ok("image", "info", "a.hds"); strings.Contains(out, "does not know it") || !strings.Contains(out, "not closed cleanly") {
		t.Error(out)
	}
}
