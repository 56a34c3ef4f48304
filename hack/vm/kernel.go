package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"holdfast/hack/debian"
)

// kernel is a kernel in the cache, ready to boot.
type kernel struct {
	Series  string
	Release string // uname -r
	Image   string // path of vmlinuz
	Modules string // path of the directory that belongs at /lib/modules/Release
	Version string // Debian's version of the package, for the log
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

var seriesForm = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// findKernel returns the cached kernel of the series, fetching it if there is
// none or refresh is set. Several processes may call it at the same time.
func findKernel(cache, series string, refresh bool) (*kernel, error) {
	if !seriesForm.MatchString(series) {
		return nil, fmt.Errorf("-kernel %q: want a series such as 6.12", series)
	}
	record := filepath.Join(cache, series+".json")
	if !refresh {
		if k := readRecord(record); k != nil && k.indexed() {
			return k, nil
		}
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, series+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	// Somebody else may have fetched it while we waited.
	if k := readRecord(record); k != nil && !refresh {
		if !k.indexed() {
			return k, depmod(k.root(), k.Release)
		}
		return k, nil
	}
	return fetchKernel(cache, series, record)
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
	for _, p := range []string{k.Image, filepath.Join(k.Modules, "modules.dep")} {
		if _, err := os.Stat(p); err != nil {
			return nil
		}
	}
	return &k
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

// fetchKernel downloads and unpacks the newest kernel of the series.
func fetchKernel(cache, series, record string) (*kernel, error) {
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	a, err := debian.New(work, kernelSuites...)
	if err != nil {
		return nil, err
	}
	logf("fetching a %s kernel (once; kept in %s)", series, cache)
	// A suite that is gone makes update fail, but the others are there.
	updateErr := a.Update()
	p, err := resolve(a, series)
	if err != nil {
		return nil, errors.Join(err, updateErr)
	}
	logf("downloading %s %s", strings.Join(p.names, " "), p.version)
	tree := filepath.Join(work, "tree")
	names := make([]string, len(p.names))
	for i, n := range p.names {
		names[i] = n + "=" + p.version
	}
	if err := a.Fetch(tree, names...); err != nil {
		return nil, err
	}
	return install(cache, series, record, tree, p)
}

// install moves an unpacked kernel into its place and writes the record, which
// makes it visible.
func install(cache, series, record, tree string, p *packages) (*kernel, error) {
	release := p.release
	final := filepath.Join(cache, release+"_"+strings.ReplaceAll(p.version, "/", "_"))
	k := &kernel{
		Series: series, Release: release, Version: p.version,
		Image:   filepath.Join(final, "vmlinuz"),
		Modules: filepath.Join(final, "lib", "modules", release),
	}
	// The guest sees the files through 9p: never change them under a running
	// one. The same version, complete, is as good as what we have.
	if _, err := os.Stat(filepath.Join(k.Modules, "modules.dep")); err != nil {
		stage := tree + "-stage"
		if err := os.MkdirAll(filepath.Join(stage, "lib", "modules"), 0o755); err != nil {
			return nil, err
		}
		image, modules := "", ""
		for _, c := range []string{"boot/vmlinuz-" + release, "usr/lib/modules/" + release + "/vmlinuz", "lib/modules/" + release + "/vmlinuz"} {
			if _, err := os.Stat(filepath.Join(tree, c)); err == nil {
				image = filepath.Join(tree, c)
			}
		}
		for _, c := range []string{"usr/lib/modules/" + release, "lib/modules/" + release} {
			if _, err := os.Stat(filepath.Join(tree, c, "kernel")); err == nil {
				modules = filepath.Join(tree, c)
			}
		}
		if image == "" || modules == "" {
			return nil, fmt.Errorf("packages %v %s hold no vmlinuz or no modules of %s: their layout has changed, see install in hack/vm", p.names, p.version, release)
		}
		if err := os.Rename(image, filepath.Join(stage, "vmlinuz")); err != nil {
			return nil, err
		}
		if err := os.Rename(modules, filepath.Join(stage, "lib", "modules", release)); err != nil {
			return nil, err
		}
		if err := slim(filepath.Join(stage, "lib", "modules", release)); err != nil {
			return nil, err
		}
		if err := depmod(stage, release); err != nil {
			return nil, err
		}
		if err := os.RemoveAll(final); err != nil {
			return nil, err
		}
		if err := os.Rename(stage, final); err != nil {
			return nil, err
		}
	}
	raw, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(record+".new", raw, 0o644); err != nil {
		return nil, err
	}
	return k, os.Rename(record+".new", record)
}

// unneeded are directories of modules that no guest of ours has a use for; they
// are most of a kernel's modules.
var unneeded = []string{"drivers/gpu", "drivers/media", "drivers/net/ethernet", "drivers/net/wireless", "sound"}

// slim drops unneeded modules and unpacks the others, as far as the machine has
// the tools for it. Compressed modules work as well, but an emulated guest would
// unpack them again at each boot, and that takes seconds for xfs alone.
func slim(modules string) error {
	for _, d := range unneeded {
		if err := os.RemoveAll(filepath.Join(modules, "kernel", d)); err != nil {
			return err
		}
	}
	for ext, tool := range map[string][]string{".xz": {"xz", "-d"}, ".zst": {"zstd", "-q", "-d", "--rm"}} {
		var files []string
		err := filepath.WalkDir(modules, func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".ko"+ext) {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		if _, err := exec.LookPath(tool[0]); err != nil {
			continue
		}
		for batch := range slices.Chunk(files, 500) {
			if _, err := debian.Output(tool[0], slices.Concat(tool[1:], batch)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// depmod makes modules.dep and modules.alias, which Debian's packages leave to
// their installation scripts.
func depmod(root, release string) error {
	path, err := lookDepmod()
	if err == nil {
		_, err = debian.Output(path, "-b", root, release)
		return err
	}
	if box, boxErr := exec.LookPath("busybox"); boxErr == nil {
		_, err = debian.Output(box, "depmod", "-b", root, release)
	}
	return err
}
