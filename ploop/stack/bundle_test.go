package stack

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
)

// TestWrongKind: who is given something that can't be an image says what it is
// and, of a bundle, which images to take; a raw image is never suggested.
func TestWrongKind(t *testing.T) {
	dir := memDir(t)
	base := mustCreate(t, filepath.Join(dir, "root.hds"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	top := mustCreate(t, filepath.Join(dir, "root hds.{5}"), ploop.CreateOptions{Backing: &base})
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
	text, _ := os.ReadFile(filepath.Join(dir, bundle.DescriptorName))
	if err := os.WriteFile(bom, append([]byte("\xef\xbb\xbf\r\n"), text...), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, c := range map[string]struct {
		class error
		says  []string
	}{
		dir: {image.ErrNotImage, []string{"directory with a DiskDescriptor.xml", base.Path, `top image of this one is "` + top.Path}},
		filepath.Join(dir, bundle.DescriptorName): {image.ErrNotImage, []string{"disk descriptor", base.Path, top.Path}},
		bom:         {image.ErrNotImage, []string{"disk descriptor"}},
		empty:       {image.ErrNotImage, []string{"a directory"}},
		fifo:        {image.ErrNotImage, []string{"a FIFO"}},
		socket:      {image.ErrNotImage, []string{"a socket"}},
		"/dev/null": {image.ErrNotImage, []string{"a character device"}},
		html:        {image.ErrNotPloop, []string{"magic"}},
	} {
		for name, try := range map[string]func() error{
			"open":  func() error { _, err := Open([]image.Ref{{Path: path}}, Options{}); return err },
			"info":  func() error { _, err := ploop.ReadInfo(image.Ref{Path: path}); return err },
			"check": func() error { _, err := ploop.Check([]image.Ref{{Path: path}}, ploop.CheckOptions{}); return err },
			"map":   func() error { return ploop.Map([]image.Ref{{Path: path}}, nil) },
			"convert": func() error {
				return ploop.Convert(context.Background(), image.Ref{Path: path}, filepath.Join(dir, "new"), ploop.ConvertOptions{})
			},
			"backing": func() error {
				return ploop.Create(filepath.Join(dir, "new"), ploop.CreateOptions{Backing: &image.Ref{Path: path}})
			},
		} {
			t.Run(filepath.Base(path)+"/"+name, func(t *testing.T) { WantLine(t, try(), c.class, append(c.says, path)...) })
		}
	}
	for _, path := range []string{dir, empty, fifo} { // said to be raw they are none either
		_, err := Open([]image.Ref{{Path: path, Raw: true}}, Options{})
		WantLine(t, err, image.ErrNotImage, path)
	}
}

// TestParentGap: a descriptor beside an image tells what a stack lacks.
func TestParentGap(t *testing.T) {
	dir := memDir(t)
	a := mustCreate(t, filepath.Join(dir, "a"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	b := mustCreate(t, filepath.Join(dir, "b"), ploop.CreateOptions{Backing: &a})
	c := mustCreate(t, filepath.Join(dir, "c"), ploop.CreateOptions{Backing: &b})
	other := mustCreate(t, filepath.Join(dir, "other"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	link := image.Ref{Path: filepath.Join(memDir(t), "link")}
	if err := os.Symlink(c.Path, link.Path); err != nil {
		t.Fatal(err)
	}
	if gap := ploop.FindParentGap([]image.Ref{c}); gap != nil {
		t.Errorf("without a descriptor: %v", gap)
	}
	// By names as they are once a bundle was moved.
	writeDescriptor(t, dir, "a", "/nowhere/b", `C:\vm\c`)
	for name, x := range map[string]struct {
		refs   []image.Ref
		parent string
	}{
		"all":         {[]image.Ref{a, b, c}, ""},
		"base":        {[]image.Ref{a}, ""},
		"base, top":   {[]image.Ref{a, c}, b.Path},
		"top":         {[]image.Ref{c}, b.Path},
		"two":         {[]image.Ref{b, c}, a.Path},
		"by a link":   {[]image.Ref{link}, b.Path},
		"not in it":   {[]image.Ref{other}, ""},
		"over others": {[]image.Ref{other, b}, a.Path},
		"not there":   {[]image.Ref{{Path: filepath.Join(dir, "none")}}, ""},
	} {
		gap := ploop.FindParentGap(x.refs)
		if (gap == nil) != (x.parent == "") || gap != nil && (gap.Parent != x.parent || gap.Stack[0] != a.Path) {
			t.Errorf("%s: %v", name, gap)
		}
	}
	// Shapes that the strict reading refuses or that make no sense.
	for _, xml := range []string{"", "<", "<a/>", "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a></b>", strings.Repeat("<a>", 100000)} {
		if err := os.WriteFile(filepath.Join(dir, bundle.DescriptorName), []byte(xml), 0o600); err != nil {
			t.Fatal(err)
		}
		if gap := ploop.FindParentGap([]image.Ref{c}); gap != nil {
			t.Errorf("%.40q: %v", xml, gap)
		}
	}
	ring := `<D><StorageData><Storage><Image><GUID>{00000000-0000-0000-0000-000000000001}</GUID><File>c</File></Image></Storage></StorageData>` +
		`<Snapshots><Shot><GUID>{00000000-0000-0000-0000-000000000001}</GUID><ParentGUID>{00000000-0000-0000-0000-000000000001}</ParentGUID></Shot></Snapshots></D>`
	if err := os.WriteFile(filepath.Join(dir, bundle.DescriptorName), []byte(ring), 0o600); err != nil {
		t.Fatal(err)
	}
	if gap := ploop.FindParentGap([]image.Ref{c}); gap == nil || len(gap.Stack) > image.MaxDeltas {
		t.Errorf("of a ring: %v", gap)
	}
}

// TestOddRaw: a raw file that ends within a sector is copied, padded; it isn't
// served.
func TestOddRaw(t *testing.T) {
	dir := memDir(t)
	for _, n := range []int{1, 511, 513, 4097, 3<<20 + 100} {
		raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
		data := []byte(strings.Repeat("x", n))
		if err := os.WriteFile(raw.Path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		want := string(data) + strings.Repeat("\x00", (image.SectorSize-n%image.SectorSize)%image.SectorSize)
		_, err := Open([]image.Ref{raw}, Options{ReadOnly: true})
		WantLine(t, err, image.ErrGeometry, "convert")
		if i, err := ploop.ReadInfo(raw); err != nil || i.Size != int64(len(want)) {
			t.Errorf("%+v, %v", i, err)
		}
		for _, to := range []ploop.Format{ploop.FormatV2, ploop.FormatRaw} {
			dst := image.Ref{Path: filepath.Join(dir, "dst"), Raw: to == ploop.FormatRaw}
			if err := ploop.Convert(context.Background(), raw, dst.Path, ploop.ConvertOptions{To: to}); err != nil {
				t.Fatal(err)
			}
			if got := readDisk(t, dst); string(got) != want {
				t.Errorf("%d bytes, to %v: %d bytes, and differs", n, to, len(got))
			}
			os.Remove(dst.Path)
		}
		top := mustCreate(t, filepath.Join(dir, "top"), ploop.CreateOptions{Backing: &raw, ClusterSize: 64 << 10})
		dst := image.Ref{Path: filepath.Join(dir, "flat"), Raw: true}
		if err := ploop.ConvertStack(context.Background(), []image.Ref{raw, top}, dst.Path, ploop.ConvertOptions{}); err != nil {
			t.Fatal(err)
		}
		if string(readDisk(t, dst)) != want {
			t.Errorf("%d bytes below an image differ", n)
		}
		os.Remove(top.Path)
		os.Remove(dst.Path)
	}
}
