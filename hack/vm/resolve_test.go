package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/hack/debian"
)

// fakeArchive has kernels by suite: their versions, what the metapackage points to first.
type fakeArchive struct {
	suites  map[string][]string
	gone    []string // versions that are listed and can't be downloaded
	updates int
	fetched []string
	ago     time.Duration
}

func (a *fakeArchive) Update() error {
	a.updates++
	a.ago = 0
	if len(a.suites) == 0 {
		return errors.New("no network")
	}
	return nil
}

func (a *fakeArchive) Answered() (suites []string, ago time.Duration) {
	if a.updates == 0 {
		return nil, 0
	}
	for s := range a.suites {
		suites = append(suites, s)
	}
	slices.Sort(suites)
	return suites, a.ago
}

// fakeRelease is a version's uname -r: 7.2.13+deb14-amd64 of 7.2.13-1.
func fakeRelease(version string) string {
	upstream, _, _ := strings.Cut(version, "-")
	return upstream + "+deb-amd64"
}

func (a *fakeArchive) Show(packages ...string) ([]map[string]string, error) {
	var out []map[string]string
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		for _, versions := range a.suites {
			for i, v := range versions {
				image := "linux-image-" + fakeRelease(v)
				switch {
				case name == metapackage && i == 0:
					out = append(out, map[string]string{"package": name, "version": v, "depends": "linux-base-amd64 (= " + v + "), " + image + " (= " + v + ")"})
				case name == image && (version == "" || version == v):
					out = append(out, map[string]string{"package": name, "version": v, "depends": "kmod, linux-base-" + fakeRelease(v) + ", linux-modules-" + fakeRelease(v) + " (= " + v + ")"})
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no packages found")
	}
	return out, nil
}

func (a *fakeArchive) Search(pattern string) (string, error) {
	var b strings.Builder
	for _, versions := range a.suites {
		for _, v := range versions {
			b.WriteString("linux-image-" + fakeRelease(v) + " - Linux\nlinux-image-" + fakeRelease(v) + "-dbg - symbols\n")
		}
	}
	return b.String(), nil
}

func (a *fakeArchive) Fetch(tree string, packages ...string) error {
	release := ""
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		if slices.Contains(a.gone, version) {
			return errors.New("404 not found")
		}
		if r, ok := strings.CutPrefix(name, "linux-image-"); ok {
			release = r
			a.fetched = append(a.fetched, version)
		}
	}
	if want := "linux-modules-" + release; !regexp.MustCompile(`\b` + regexp.QuoteMeta(want) + `=`).MatchString(strings.Join(packages, " ")) {
		return errors.New("no " + want + " among " + strings.Join(packages, " "))
	}
	modules := filepath.Join(tree, "lib/modules", release)
	return errors.Join(
		os.MkdirAll(filepath.Join(modules, "kernel"), 0o755),
		os.WriteFile(filepath.Join(modules, "modules.order"), nil, 0o644),
		os.WriteFile(filepath.Join(modules, "modules.builtin"), nil, 0o644),
		os.MkdirAll(filepath.Join(tree, "boot"), 0o755),
		os.WriteFile(filepath.Join(tree, "boot/vmlinuz-"+release), []byte("kernel"), 0o644))
}

// today is what the suites had on a day when one of them was about to drop 7.2.
func today() *fakeArchive {
	return &fakeArchive{suites: map[string][]string{
		"bookworm-backports": {"6.12.95-1~bpo12+1", "6.12.43-1~bpo12+1"},
		"trixie":             {"6.12.117-1"},
		"trixie-backports":   {"7.3.4-1~bpo13+1", "7.2.12-1~bpo13+1", "6.18.15-1~bpo13+1"},
		"sid":                {"7.2.13-1"},
	}}
}

// testFinder looks kernels up in an archive, at a time that the test moves.
func testFinder(t *testing.T, a *fakeArchive) (f *finder, now *time.Time) {
	t.Helper()
	if _, err := lookDepmod(); err != nil {
		t.Skip(err)
	}
	now = new(time.Time)
	*now = time.Now()
	return &finder{t.TempDir(), func(string) (archive, error) { return a, nil }, func() time.Time { return *now }}, now
}

func found(t *testing.T, f *finder, name, version string) *kernel {
	t.Helper()
	k, err := f.find(name, false)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if k.Version != version || k.Series != seriesOf(version) || k.Release != fakeRelease(version) {
		t.Errorf("%s: got %+v, want %s", name, *k, version)
	}
	return k
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		what    string
		change  func(a *fakeArchive)
		name    string
		version string // "": there is none
	}{
		{"newest of all suites", nil, newest, "7.3.4-1~bpo13+1"},
		{"oldest, its newest version", nil, oldest, "6.12.117-1"},
		{"series that the newest suite has moved on from", nil, "7.2", "7.2.13-1"},
		{"series that no metapackage has any more", nil, "6.18", "6.18.15-1~bpo13+1"},
		{"series that nobody has", nil, "6.13", ""},
		{"series that another begins like", nil, "6.1", ""},
		{"newest, a suite gone", func(a *fakeArchive) { delete(a.suites, "trixie-backports") }, newest, "7.2.13-1"},
		{"newest, which can't be downloaded", func(a *fakeArchive) { a.gone = []string{"7.3.4-1~bpo13+1"} }, newest, "7.2.13-1"},
		{"oldest, a suite gone", func(a *fakeArchive) { delete(a.suites, "trixie") }, oldest, "6.12.95-1~bpo12+1"},
		{"oldest, which can't be downloaded", func(a *fakeArchive) { a.gone = []string{"6.12.117-1"} }, oldest, "6.12.95-1~bpo12+1"},
		{"oldest, which no suite has any more", func(a *fakeArchive) {
			delete(a.suites, "trixie")
			delete(a.suites, "bookworm-backports")
			a.suites["bookworm"] = []string{"6.1.176-1"}
		}, oldest, "6.18.15-1~bpo13+1"},
		{"newest, only old ones there", func(a *fakeArchive) { a.suites = map[string][]string{"bookworm": {"6.1.176-1"}} }, newest, ""},
		{"newest, no network", func(a *fakeArchive) { a.suites = nil }, newest, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			a := today()
			if c.change != nil {
				c.change(a)
			}
			f, _ := testFinder(t, a)
			if c.version == "" {
				if k, err := f.find(c.name, false); err == nil {
					t.Errorf("got %s, want an error", k.Version)
				}
				return
			}
			found(t, f, c.name, c.version)
		})
	}
}

// A name is looked up again after a day, and its kernel fetched when it is another.
func TestLookUpIsBounded(t *testing.T) {
	a := today()
	f, now := testFinder(t, a)
	old := found(t, f, newest, "7.3.4-1~bpo13+1")
	a.suites["sid"] = []string{"7.4.1-1"}
	found(t, f, newest, "7.3.4-1~bpo13+1")
	found(t, f, oldest, "6.12.117-1") // from the lists that are there
	*now = now.Add(lookUpEvery - time.Minute)
	found(t, f, newest, "7.3.4-1~bpo13+1")
	if want := []string{"7.3.4-1~bpo13+1", "6.12.117-1"}; a.updates != 1 || !slices.Equal(a.fetched, want) {
		t.Errorf("%d updates, fetched %v; want 1 and %v", a.updates, a.fetched, want)
	}
	*now = now.Add(2 * time.Minute)
	a.ago = lookUpEvery
	found(t, f, newest, "7.4.1-1")
	if _, err := os.Stat(old.Image); err == nil {
		t.Error("a kernel that no name stands for is kept for ever")
	}
	found(t, f, "7.4", "7.4.1-1")
	if want := []string{"7.3.4-1~bpo13+1", "6.12.117-1", "7.4.1-1"}; a.updates != 2 || !slices.Equal(a.fetched, want) {
		t.Errorf("%d updates, fetched %v; want 2 and %v", a.updates, a.fetched, want)
	}
	if _, err := f.find(newest, true); err != nil || a.updates != 3 {
		t.Errorf("%v, %d updates: a refresh asks at once", err, a.updates)
	}
}

// What a name stood for stays to be had from the cache.
func TestCacheWillDo(t *testing.T) {
	a := today()
	f, now := testFinder(t, a)
	found(t, f, "7.2", "7.2.13-1")
	found(t, f, newest, "7.3.4-1~bpo13+1")
	later := func(suites map[string][]string) {
		a.suites, a.ago = suites, lookUpEvery
		*now = now.Add(lookUpEvery + time.Minute)
	}
	later(map[string][]string{"trixie": {"6.12.117-1"}}) // all others drop out
	found(t, f, "7.2", "7.2.13-1")
	found(t, f, newest, "7.3.4-1~bpo13+1")
	found(t, f, "7.3", "7.3.4-1~bpo13+1")
	later(nil) // no network
	updates := a.updates
	found(t, f, newest, "7.3.4-1~bpo13+1")
	found(t, f, newest, "7.3.4-1~bpo13+1")
	if a.updates != updates+1 {
		t.Errorf("%d updates for two runs without a network, want 1", a.updates-updates)
	}
	*now = now.Add(lookUpAgain + time.Minute)
	found(t, f, newest, "7.3.4-1~bpo13+1")
	if a.updates != updates+2 {
		t.Errorf("%d updates an hour later, want 2", a.updates-updates)
	}
	if k, err := f.find(oldest, false); err == nil {
		t.Errorf("took %s for the oldest only because it is in the cache", k.Version)
	}
	if _, err := f.find(newest, true); err == nil {
		t.Error("a refresh that can't be done is no error")
	}
}

func TestNameForm(t *testing.T) {
	f, _ := testFinder(t, today())
	for _, name := range []string{"", "7", "7.3.4", "latest", "../7.3"} {
		if _, err := f.find(name, false); err == nil || !strings.Contains(err.Error(), "want newest, oldest or a series") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestVersionedImages(t *testing.T) {
	got := versionedImages(`linux-image-6.12.95+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.95+deb12-amd64-unsigned - Linux 6.12 for 64-bit PCs
linux-image-6.12.95+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.95+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs, PREEMPT_RT (signed)
linux-image-6.12.95+deb12-amd64-dbg - Debug symbols
linux-image-7.3-amd64 - Linux 7.3-rc7 for 64-bit PCs
linux-image-6.12.0-3-amd64 - Linux 6.12 in the old naming
`)
	want := []string{"linux-image-6.12.95+deb12-amd64", "linux-image-6.12.0-3-amd64"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestKernelPackages(t *testing.T) {
	p := kernelPackages("linux-image-7.2.13+deb14-amd64", "7.2.13-1",
		"dracut | initramfs-tools (>= 0.120) | linux-initramfs-tool, linux-base-7.2.13+deb14-amd64 (= 7.2.13-1), linux-binary-7.2.13+deb14-amd64 (= 7.2.13-1), linux-modules-7.2.13+deb14-amd64 (= 7.2.13-1)")
	want := &packages{
		release: "7.2.13+deb14-amd64", version: "7.2.13-1",
		names: []string{"linux-image-7.2.13+deb14-amd64", "linux-binary-7.2.13+deb14-amd64", "linux-modules-7.2.13+deb14-amd64"},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got %+v, want %+v", p, want)
	}
}

// The order of what a real metapackage's stanzas say.
func TestImageOf(t *testing.T) {
	for _, s := range debian.Stanzas(`Package: linux-image-amd64
Version: 7.2.13-1
Depends: linux-base-amd64 (= 7.2.13-1), linux-image-7.2.13+deb14-amd64 (= 7.2.13-1)

Package: linux-image-amd64
Version: 6.1.176-1
Depends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)
`) {
		want := map[string]string{"7.2.13-1": "linux-image-7.2.13+deb14-amd64", "6.1.176-1": "linux-image-6.1.0-50-amd64"}[s["version"]]
		if got := imageOf(s["depends"]); got != want {
			t.Errorf("%s: got %q, want %q", s["version"], got, want)
		}
	}
}
