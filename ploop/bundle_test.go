package ploop

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWrongKind: who is given something that can't be an image says what it is
// and, of a bundle, which images to take; a raw image is never suggested.
func TestWrongKind(t *testing.T) {
	dir := memDir(t)
	base := mustCreate(t, filepath.Join(dir, "root.hds"), CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	top := mustCreate(t, filepath.Join(dir, "root hds.{5}"), CreateOptions{Backing: &base})
	writeDescriptor(t, dir, "root.hds", "root hds.{5}")
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(socket, unix.S_IFSOCK|0o600, 0); err != nil {
		t.Skip(err)
	}
	html := filepath.Join(dir, "html")
	if err := os.WriteFile(html, []byte("<html>"+strings.Repeat(" ", 600)), 0o600); err != nil {
		t.Fatal(err)
	}
	bom := filepath.Join(dir, "bom.xml")
	text, _ := os.ReadFile(filepath.Join(dir, DescriptorName))
	if err := os.WriteFile(bom, append([]byte("\xef\xbb\xbf\r\n"), text...), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, c := range map[string]struct {
		class error
		says  []string
	}{
		dir:                                {ErrNotImage, []string{"directory with a DiskDescriptor.xml", base.Path, `top image of this one is "` + top.Path}},
		filepath.Join(dir, DescriptorName): {ErrNotImage, []string{"disk descriptor", base.Path, top.Path}},
		bom:                                {ErrNotImage, []string{"disk descriptor"}},
		empty:                              {ErrNotImage, []string{"a directory"}},
		fifo:                               {ErrNotImage, []string{"a FIFO"}},
		socket:                             {ErrNotImage, []string{"a socket"}},
		"/dev/null":                        {ErrNotImage, []string{"a character device"}},
		html:                               {ErrNotPloop, []string{"magic"}},
	} {
		for name, try := range map[string]func() error{
			"open":  func() error { _, err := Open([]ImageRef{{Path: path}}, Options{}); return err },
			"info":  func() error { _, err := ReadInfo(ImageRef{Path: path}); return err },
			"check": func() error { _, err := Check([]ImageRef{{Path: path}}, CheckOptions{}); return err },
			"map":   func() error { return Map([]ImageRef{{Path: path}}, nil) },
			"convert": func() error {
				return Convert(context.Background(), ImageRef{Path: path}, filepath.Join(dir, "new"), ConvertOptions{})
			},
			"backing": func() error {
				return Create(filepath.Join(dir, "new"), CreateOptions{Backing: &ImageRef{Path: path}})
			},
		} {
			t.Run(filepath.Base(path)+"/"+name, func(t *testing.T) { wantLine(t, try(), c.class, append(c.says, path)...) })
		}
	}
	for _, path := range []string{dir, empty, fifo} { // said to be raw they are none either
		_, err := Open([]ImageRef{{Path: path, Raw: true}}, Options{})
		wantLine(t, err, ErrNotImage, path)
	}
}

// TestParentGap: a descriptor beside an image tells what a stack lacks.
func TestParentGap(t *testing.T) {
	dir := memDir(t)
	a := mustCreate(t, filepath.Join(dir, "a"), CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	b := mustCreate(t, filepath.Join(dir, "b"), CreateOptions{Backing: &a})
	c := mustCreate(t, filepath.Join(dir, "c"), CreateOptions{Backing: &b})
	other := mustCreate(t, filepath.Join(dir, "other"), CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	link := ImageRef{Path: filepath.Join(memDir(t), "link")}
	if err := os.Symlink(c.Path, link.Path); err != nil {
		t.Fatal(err)
	}
	if gap := FindParentGap([]ImageRef{c}); gap != nil {
		t.Errorf("without a descriptor: %v", gap)
	}
	// By names as they are once a bundle was moved.
	writeDescriptor(t, dir, "a", "/nowhere/b", `C:\vm\c`)
	for name, x := range map[string]struct {
		refs   []ImageRef
		parent string
	}{
		"all":         {[]ImageRef{a, b, c}, ""},
		"base":        {[]ImageRef{a}, ""},
		"base, top":   {[]ImageRef{a, c}, b.Path},
		"top":         {[]ImageRef{c}, b.Path},
		"two":         {[]ImageRef{b, c}, a.Path},
		"by a link":   {[]ImageRef{link}, b.Path},
		"not in it":   {[]ImageRef{other}, ""},
		"over others": {[]ImageRef{other, b}, a.Path},
		"not there":   {[]ImageRef{{Path: filepath.Join(dir, "none")}}, ""},
	} {
		gap := FindParentGap(x.refs)
		if (gap == nil) != (x.parent == "") || gap != nil && (gap.Parent != x.parent || gap.Stack[0] != a.Path) {
			t.Errorf("%s: %v", name, gap)
		}
	}
	// Shapes that the strict reading refuses or that make no sense.
	for _, xml := range []string{"", "<", "<a/>", "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a></b>", strings.Repeat("<a>", 100000)} {
		if err := os.WriteFile(filepath.Join(dir, DescriptorName), []byte(xml), 0o600); err != nil {
			t.Fatal(err)
		}
		if gap := FindParentGap([]ImageRef{c}); gap != nil {
			t.Errorf("%.40q: %v", xml, gap)
		}
	}
	ring := `<D><StorageData><Storage><Image><GUID>{00000000-0000-0000-0000-000000000001}</GUID><File>c</File></Image></Storage></StorageData>` +
		`<Snapshots><Shot><GUID>{00000000-0000-0000-0000-000000000001}</GUID><ParentGUID>{00000000-0000-0000-0000-000000000001}</ParentGUID></Shot></Snapshots></D>`
	if err := os.WriteFile(filepath.Join(dir, DescriptorName), []byte(ring), 0o600); err != nil {
		t.Fatal(err)
	}
	if gap := FindParentGap([]ImageRef{c}); gap == nil || len(gap.Stack) > MaxDeltas {
		t.Errorf("of a ring: %v", gap)
	}
}

// TestOddRaw: a raw file that ends within a sector is copied, padded; it isn't
// served.
func TestOddRaw(t *testing.T) {
	dir := memDir(t)
	for _, n := range []int{1, 511, 513, 4097, 3<<20 + 100} {
		raw := ImageRef{Path: filepath.Join(dir, "raw"), Raw: true}
		data := []byte(strings.Repeat("x", n))
		if err := os.WriteFile(raw.Path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		want := string(data) + strings.Repeat("\x00", (SectorSize-n%SectorSize)%SectorSize)
		_, err := Open([]ImageRef{raw}, Options{ReadOnly: true})
		wantLine(t, err, ErrGeometry, "convert")
		if i, err := ReadInfo(raw); err != nil || i.Size != int64(len(want)) {
			t.Errorf("%+v, %v", i, err)
		}
		for _, to := range []Format{FormatV2, FormatRaw} {
			dst := ImageRef{Path: filepath.Join(dir, "dst"), Raw: to == FormatRaw}
			if err := Convert(context.Background(), raw, dst.Path, ConvertOptions{To: to}); err != nil {
				t.Fatal(err)
			}
			if got := readDisk(t, dst); string(got) != want {
				t.Errorf("%d bytes, to %v: %d bytes, and differs", n, to, len(got))
			}
			os.Remove(dst.Path)
		}
		top := mustCreate(t, filepath.Join(dir, "top"), CreateOptions{Backing: &raw, ClusterSize: 64 << 10})
		dst := ImageRef{Path: filepath.Join(dir, "flat"), Raw: true}
		if err := ConvertStack(context.Background(), []ImageRef{raw, top}, dst.Path, ConvertOptions{}); err != nil {
			t.Fatal(err)
		}
		if string(readDisk(t, dst)) != want {
			t.Errorf("%d bytes below an image differ", n)
		}
		os.Remove(top.Path)
		os.Remove(dst.Path)
	}
}
