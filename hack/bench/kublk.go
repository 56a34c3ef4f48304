package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"holdfast/hack/debian"
)

// findKublk returns the path of kublk, the C server in the kernel's selftests,
// which is the reference to measure against. It is GPL, so it is no part of
// holdfast: Debian's package of the kernel's sources is fetched and kublk built
// from it, once, and kept in the user's cache. The newest there is will do for every
// kernel.
func findKublk() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "holdfast", "kublk")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if have := newestKublk(cache); have != "" {
		return have, nil
	}
	work, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	fmt.Fprintf(os.Stderr, "bench: fetching the kernel's sources to build kublk (once; kept in %s)\n", cache)
	tree := filepath.Join(work, "tree")
	series, err := fetchKublk(work, tree)
	if err != nil {
		return "", err
	}
	program := filepath.Join(cache, "kublk-"+series)
	if err := buildKublk(tree, program+".new"); err != nil {
		return "", err
	}
	return program, os.Rename(program+".new", program)
}

// newestKublk is the program of the newest sources in the cache, if there is any.
func newestKublk(cache string) string {
	programs, _ := filepath.Glob(filepath.Join(cache, "kublk-*[0-9]"))
	return slices.MaxFunc(append(programs, ""), debian.CompareVersions)
}

const sourcePackage = "linux-source-"

// newestSources picks the newest kernel's from apt-cache search's output.
func newestSources(search string) (series string) {
	for line := range strings.SplitSeq(search, "\n") {
		name, _, _ := strings.Cut(line, " ")
		if s, ok := strings.CutPrefix(name, sourcePackage); ok && debian.CompareVersions(s, series) > 0 {
			series = s
		}
	}
	return series
}

// fetchKublk unpacks the sources, and the library and headers that they need
// in versions newer than most machines have. It returns the sources' series.
func fetchKublk(work, tree string) (series string, err error) {
	apt, err := debian.New(work, debian.Suites...)
	if err != nil {
		return "", err
	}
	// A suite that is gone makes it fail, but the others are there.
	updateErr := apt.Update()
	found, err := apt.Search("^" + sourcePackage + `[0-9]+\.[0-9]+$`)
	if err != nil {
		return "", errors.Join(err, updateErr)
	}
	if series = newestSources(found); series == "" {
		return "", errors.Join(fmt.Errorf("no suite of %v has the kernel's sources", debian.Suites), updateErr)
	}
	var packages []string
	for _, p := range []string{sourcePackage + series, "linux-libc-dev", "liburing-dev"} {
		version, err := apt.Newest(p)
		if err != nil {
			return "", err
		}
		packages = append(packages, p+"="+version)
	}
	return series, apt.Fetch(tree, packages...)
}

const kublkSources = "tools/testing/selftests/ublk"

func buildKublk(tree, program string) error {
	archives, _ := filepath.Glob(filepath.Join(tree, "usr/src/linux-source-*.tar.*"))
	if len(archives) != 1 {
		return fmt.Errorf("the package of the kernel's sources holds %d archives, want 1: its layout has changed, see buildKublk in hack/bench", len(archives))
	}
	source := filepath.Join(tree, "src")
	if err := os.Mkdir(source, 0o755); err != nil {
		return err
	}
	if _, err := debian.Output("tar", "-xf", archives[0], "-C", source, "--strip-components=1", "--wildcards", "*/"+kublkSources+"/*"); err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(source, kublkSources, "*.c"))
	include := filepath.Join(tree, "usr/include")
	args := []string{"-O3", "-static", "-w", "-D_GNU_SOURCE", "-I", include, "-I", filepath.Join(include, "x86_64-linux-gnu"), "-o", program}
	for _, f := range files {
		if !strings.HasPrefix(filepath.Base(f), "metadata_") { // a program of its own
			args = append(args, f)
		}
	}
	libraries, _ := filepath.Glob(filepath.Join(tree, "usr/lib/x86_64-linux-gnu/liburing.a"))
	if len(libraries) != 1 {
		return errors.New("liburing-dev holds no static library")
	}
	args = append(args, libraries[0], "-lpthread", "-lm")
	if _, err := debian.Output("gcc", args...); err != nil {
		return fmt.Errorf("build kublk: %w", err)
	}
	return nil
}
