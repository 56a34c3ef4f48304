package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/hack/debian"
)

// place is where the packages' kernel lies in the cache once it is installed.
func (p *packages) place(cache string) *kernel {
	final := filepath.Join(cache, p.release+"_"+strings.ReplaceAll(p.version, "/", "_"))
	return &kernel{
		Series: seriesOf(p.version), Release: p.release, Version: p.version,
		Image:   filepath.Join(final, "vmlinuz"),
		Modules: filepath.Join(final, "lib", "modules", p.release),
	}
}

// fetch downloads and installs a kernel, unless the same version is there in full.
func fetch(cache string, a archive, p *packages) (*kernel, error) {
	k := p.place(cache)
	if k.complete() {
		return k, nil
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	logf("downloading %s %s (once; kept in %s)", strings.Join(p.names, " "), p.version, cache)
	tree := filepath.Join(work, "tree")
	names := make([]string, len(p.names))
	for i, n := range p.names {
		names[i] = n + "=" + p.version
	}
	if err := a.Fetch(tree, names...); err != nil {
		return nil, err
	}
	return k, install(k, tree, p)
}

// install moves an unpacked kernel into its place. The guest sees the files
// through 9p: those of a running one never change.
func install(k *kernel, tree string, p *packages) error {
	release, final := k.Release, k.root()
	stage := tree + "-stage"
	if err := os.MkdirAll(filepath.Join(stage, "lib", "modules"), 0o755); err != nil {
		return err
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
		return fmt.Errorf("packages %v %s hold no vmlinuz or no modules of %s: their layout has changed, see install in hack/vm", p.names, p.version, release)
	}
	if err := os.Rename(image, filepath.Join(stage, "vmlinuz")); err != nil {
		return err
	}
	if err := os.Rename(modules, filepath.Join(stage, "lib", "modules", release)); err != nil {
		return err
	}
	if err := slim(filepath.Join(stage, "lib", "modules", release)); err != nil {
		return err
	}
	if err := depmod(stage, release); err != nil {
		return err
	}
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(stage, final)
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
