package ploop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/ploop/internal/bundle"
)

func testGUID(i int) string { return fmt.Sprintf("{%08X-0000-4000-8000-00000000ABCD}", i+1) }

// descriptorXML describes a chain of n images, the last of them the top.
func descriptorXML(n int, extra string) string {
	var images, shots strings.Builder
	for i := range n {
		kind, parent := "Compressed", bundle.NoParent
		if i == 0 {
			kind = "Plain"
		} else {
			parent = testGUID(i - 1)
		}
		fmt.Fprintf(&images, "<Image><GUID>%s</GUID><Type>%s</Type><File>root.hds.%d</File></Image>", testGUID(i), kind, i)
		fmt.Fprintf(&shots, "<Shot><GUID>%s</GUID><ParentGUID>%s</ParentGUID></Shot>", strings.ToLower(testGUID(i)), parent)
	}
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<Parallels_disk_image Version="1.0">
 <Disk_Parameters><Disk_size>20480</Disk_size><Cylinders>20</Cylinders><Heads>16</Heads><Sectors>63</Sectors><Padding>0</Padding></Disk_Parameters>
 <StorageData><Storage><Start>0</Start><End>20480</End><Blocksize>2048</Blocksize>%s</Storage></StorageData>
 <Snapshots><TopGUID>%s</TopGUID>%s</Snapshots>%s
</Parallels_disk_image>`, images.String(), testGUID(n-1), shots.String(), extra)
}

func TestDescriptor(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, bundle.DescriptorName)
	for _, n := range []int{1, 3, MaxDeltas} {
		if err := os.WriteFile(path, []byte(descriptorXML(n, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := ParseDescriptor(path)
		if err != nil {
			t.Fatal(err)
		}
		if d.Size != 20480*512 || d.ClusterSize != 1<<20 || len(d.Stack) != n || d.TopGUID != strings.ToLower(testGUID(n-1)) {
			t.Errorf("%+v", d)
		}
		for i, ref := range d.Stack {
			if want := (ImageRef{Path: fmt.Sprintf("%s/root.hds.%d", dir, i), Raw: i == 0}); ref != want {
				t.Errorf("image %d is %v, want %v", i, ref, want)
			}
		}
	}
}

func TestMalformedDescriptor(t *testing.T) {
	good := descriptorXML(3, "")
	for name, c := range map[string]struct {
		xml   string
		class error
		says  string
	}{
		"empty":             {"", ErrCorrupt, "EOF"},
		"not XML":           {"\x00\x01\x02", ErrCorrupt, "XML"},
		"cut":               {good[:len(good)/2], ErrCorrupt, "XML"},
		"too long":          {good + strings.Repeat(" ", bundle.MaxSize), ErrLimit, "at most"},
		"entity bomb":       {`<!DOCTYPE a [<!ENTITY b "cccccccc"><!ENTITY d "&b;&b;&b;">]><a>&d;</a>`, ErrCorrupt, "entity"},
		"nested":            {strings.Repeat("<a>", 300000), ErrCorrupt, "XML"},
		"254 images":        {descriptorXML(254, ""), ErrLimit, "253"},
		"two storages":      {strings.Replace(good, "</StorageData>", "<Storage></Storage></StorageData>", 1), ErrUnsupported, "found 2"},
		"no storage":        {"<a></a>", ErrUnsupported, "found 0"},
		"size 0":            {strings.Replace(good, ">20480<", ">0<", 1), ErrCorrupt, "Disk_size"},
		"absurd size":       {strings.ReplaceAll(good, ">20480<", ">18446744073709551615<"), ErrCorrupt, "Disk_size"},
		"size overflow":     {strings.ReplaceAll(good, ">20480<", ">18446744073709551616<"), ErrCorrupt, "XML"},
		"size of another":   {strings.Replace(good, ">20480<", ">20481<", 1), ErrCorrupt, "20481"},
		"no cluster":        {strings.Replace(good, ">2048<", ">0<", 1), ErrCorrupt, "Blocksize"},
		"ring":              {strings.Replace(good, bundle.NoParent, testGUID(2), 1), ErrUnsupported, "Plain with a parent"},
		"ring of deltas":    {strings.Replace(strings.Replace(good, "Plain", "Compressed", 1), bundle.NoParent, testGUID(2), 1), ErrLimit, "none twice"},
		"own parent":        {strings.Replace(good, "<ParentGUID>"+testGUID(1), "<ParentGUID>"+testGUID(2), 1), ErrLimit, "none twice"},
		"missing parent":    {strings.Replace(good, "<ParentGUID>"+testGUID(1), "<ParentGUID>"+testGUID(7), 1), ErrCorrupt, "no Image"},
		"missing shot":      {strings.ReplaceAll(good, "<Shot><GUID>"+strings.ToLower(testGUID(1)), "<Shot><GUID>"+testGUID(8)), ErrCorrupt, "no Shot"},
		"image twice":       {strings.Replace(good, testGUID(1), testGUID(0), 1), ErrCorrupt, "twice"},
		"shot twice":        {strings.ReplaceAll(good, strings.ToLower(testGUID(1)), strings.ToLower(testGUID(0))), ErrCorrupt, "twice"},
		"no top":            {strings.Replace(good, "<TopGUID>"+testGUID(2), "<TopGUID>", 1), ErrCorrupt, "TopGUID"},
		"zero top":          {strings.Replace(good, "<TopGUID>"+testGUID(2), "<TopGUID>"+bundle.NoParent, 1), ErrCorrupt, "all zero"},
		"bad GUID":          {strings.Replace(good, testGUID(1), "{nonsense}", 1), ErrCorrupt, "nonsense"},
		"no file":           {strings.Replace(good, "root.hds.1", "", 1), ErrCorrupt, "file name"},
		"unknown type":      {strings.Replace(good, "Plain", "Encrypted", 1), ErrUnsupported, "Encrypted"},
		"raw in the middle": {strings.Replace(good, "Compressed", "Plain", 1), ErrUnsupported, "base"},
	} {
		_, err := parseDescriptor("/d/"+bundle.DescriptorName, []byte(c.xml))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		t.Run(name, func(t *testing.T) { wantLine(t, err, c.class, "/d/"+bundle.DescriptorName, c.says) })
	}
	if _, err := ParseDescriptor(t.TempDir()); err == nil {
		t.Error("takes a directory")
	}
}

func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(descriptorXML(3, "")))
	f.Add([]byte(descriptorXML(1, "<x>")))
	f.Add([]byte("<a>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDescriptor("/x/DiskDescriptor.xml", b)
		if err != nil {
			wantFormatError(t, err)
			return
		}
		if len(d.Stack) == 0 || len(d.Stack) > MaxDeltas || len(d.GUIDs) != len(d.Stack) || d.Size <= 0 || d.ClusterSize <= 0 {
			t.Fatalf("accepted %+v", d)
		}
	})
}

// wantLine wants an error of a class, on one line that says some parts.
func wantLine(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("error is %v, want %v", err, class)
		return
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %v", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q doesn't say %q", err, p)
		}
	}
}

// wantFormatError wants an error to be of the content, on one line.
func wantFormatError(t *testing.T, err error) {
	t.Helper()
	var fe *FormatError
	if !errors.As(err, &fe) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("%q is no FormatError of one line", err)
	}
}
