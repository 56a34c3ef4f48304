package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"holdfast/hack/debian"
)

// kernel is a kernel in the cache, ready to boot.
type kernel struct {
	Series  string
	Release string    // uname -r
	Image   string    // path of vmlinuz
	Modules string    // path of the directory that belongs at /lib/modules/Release
	Version string    // Debian's version of the package
	LookUp  time.Time // when what the record's name stands for is to be looked up again
}

// cacheDir is where kernels, and the verdict on KVM, are kept.
func cacheDir() (string, error) {
	if d := os.Getenv("HOLDFAST_VM_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: set HOLDFAST_VM_CACHE to a directory for kernels", err)
	}
	return filepath.Join(d, "holdfast", "kernels"), nil
}

// finder finds kernels by name. Tests put other things in its places.
type finder struct {
	cache string
	open  func(dir string) (archive, error)
	now   func() time.Time
}

func newFinder(cache string) *finder {
	return &finder{cache, func(dir string) (archive, error) { return debian.New(dir, debian.Suites...) }, time.Now}
}

// A name's meaning is looked up in Debian's suites when a day has passed since the last
// time, or an hour since the last time in vain.
const (
	lookUpEvery = 24 * time.Hour
	lookUpAgain = time.Hour
)

// listsLast is how long the suites' lists serve: for the other names that are looked up
// with one.
const listsLast = 10 * time.Minute

// find returns the kernel of a name: newest, oldest or a series. It is the cache's as long
// as that was looked up not long ago, or can't be looked up; refresh always looks it up,
// and fails where that can't be done. Several processes may call it at the same time.
func (f *finder) find(name string, refresh bool) (*kernel, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("-kernel %q: want %s, %s or a series such as %s", name, newest, oldest, oldestSeries)
	}
	record := filepath.Join(f.cache, name+".json")
	if k := readRecord(record); k != nil && !refresh && k.indexed() && !f.due(k) {
		return k, k.use()
	}
	if err := os.MkdirAll(f.cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(f.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	// Somebody else may have found it while we waited.
	k := readRecord(record)
	if k == nil || refresh || f.due(k) {
		if k, err = f.lookUp(name, refresh); err != nil {
			return nil, err
		}
		if err := writeRecord(record, k); err != nil {
			return nil, err
		}
	}
	if !k.indexed() {
		if err := depmod(k.root(), k.Release); err != nil {
			return nil, err
		}
	}
	f.prune()
	return k, k.use()
}

// due says that what a kernel's name stands for is to be looked up again. A clock that was
// set back must not put that off for long.
func (f *finder) due(k *kernel) bool {
	left := k.LookUp.Sub(f.now())
	return left <= 0 || left > lookUpEvery
}

// lookUp chooses among what the suites have and what the cache has, and fetches it.
// What can't be fetched is passed over, and so are suites that don't answer: a kernel
// in the cache will do. must makes a failure of all of them one.
func (f *finder) lookUp(name string, must bool) (*kernel, error) {
	found, lookErr := f.offers(name, must)
	if lookErr != nil && must {
		return nil, lookErr
	}
	var choices []choice
	for _, k := range f.cached() {
		choices = append(choices, choice{k.Version, func() (*kernel, error) { return k, nil }})
	}
	choices, series := order(name, append(choices, found...), lookErr == nil)
	if name == oldest && series != oldestSeries && len(choices) > 0 {
		logf("no suite has Linux %s any more, the oldest that holdfast promises to run on: taking %s for it", oldestSeries, series)
	}
	again, first := lookUpEvery, lookErr
	for _, c := range choices {
		k, err := c.get()
		if err != nil {
			first, again = cmp.Or(first, err), lookUpAgain
			logf("%s can't be had, looking for another: %v", c.version, err)
			continue
		}
		if lookErr != nil {
			again = lookUpAgain
			logf("using %s, which is in the cache: %v", k.Version, lookErr)
		}
		k.LookUp = f.now().Add(again)
		return k, nil
	}
	if first == nil {
		first = fmt.Errorf("no suite of %v has one", debian.Suites)
	}
	return nil, first
}

// offers are the suites' kernels.
func (f *finder) offers(name string, must bool) ([]choice, error) {
	a, err := f.open(filepath.Join(f.cache, "apt"))
	if err != nil {
		return nil, err
	}
	suites, ago := a.Answered()
	if len(suites) == 0 || ago > listsLast || must {
		err = a.Update() // fails when a suite is gone, but the others are there
		suites, _ = a.Answered()
	}
	if len(suites) == 0 {
		return nil, fmt.Errorf("no suite of %v answers: %w", debian.Suites, err)
	}
	logf("looking up which kernel is %s (Debian %s)", name, strings.Join(suites, ", "))
	return offers(a, name, func(p *packages) (*kernel, error) { return fetch(f.cache, a, p) })
}

// cached are the kernels of all records in the cache.
func (f *finder) cached() []*kernel {
	records, _ := filepath.Glob(filepath.Join(f.cache, "*.json"))
	var out []*kernel
	for _, r := range records {
		if k := readRecord(r); k != nil {
			out = append(out, k)
		}
	}
	return out
}

// unusedFor is how long a kernel that no name stands for any more is left to guests that
// still run it.
const unusedFor = 24 * time.Hour

// prune removes kernels whose names have moved on to others.
func (f *finder) prune() {
	named := map[string]bool{}
	for _, k := range f.cached() {
		named[k.root()] = true
	}
	dirs, _ := filepath.Glob(filepath.Join(f.cache, "*", "vmlinuz"))
	for _, d := range dirs {
		d = filepath.Dir(d)
		if s, err := os.Stat(d); err == nil && !named[d] && f.now().Sub(s.ModTime()) > unusedFor {
			_ = os.RemoveAll(d) // in vain: the next one tries again
		}
	}
}

// use marks a kernel as used now.
func (k *kernel) use() error {
	now := time.Now()
	if err := os.Chtimes(k.root(), now, now); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

func writeRecord(record string, k *kernel) error {
	raw, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(record+".new", raw, 0o644); err != nil {
		return err
	}
	return os.Rename(record+".new", record)
}

// readRecord returns nil if the kernel isn't there in full.
func readRecord(record string) *kernel {
	raw, err := os.ReadFile(record)
	if err != nil {
		return nil
	}
	var k kernel
	if json.Unmarshal(raw, &k) != nil {
		return nil
	}
	if !k.complete() {
		return nil
	}
	return &k
}

func (k *kernel) complete() bool {
	for _, p := range []string{k.Image, filepath.Join(k.Modules, "modules.dep")} {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}

// root is the directory under which the modules lie in lib/modules.
func (k *kernel) root() string {
	return filepath.Dir(filepath.Dir(filepath.Dir(k.Modules)))
}

// indexed tells whether the machine's modprobe, which is the guest's as well,
// can read the indices: kmod's wants binary ones, which busybox' depmod does not
// make. So a kernel fetched before kmod was installed needs new ones.
func (k *kernel) indexed() bool {
	if _, err := lookDepmod(); err != nil {
		return true
	}
	_, err := os.Stat(filepath.Join(k.Modules, "modules.dep.bin"))
	return err == nil
}

// lookDepmod finds kmod's depmod, also if the caller's PATH has no sbin.
func lookDepmod() (string, error) {
	for _, p := range []string{"depmod", "/usr/sbin/depmod", "/sbin/depmod"} {
		if path, err := exec.LookPath(p); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no depmod: install kmod")
}
