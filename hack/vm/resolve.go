package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// apt runs apt's tools with a sources list, state and cache of its own, so that
// the machine's stay as they are.
type apt struct {
	dir     string
	options []string
}

// packages are what makes up one kernel.
type packages struct {
	release string   // uname -r
	version string   // Debian's
	names   []string // binary packages, all of that version
}

// metapackage depends on the newest kernel of a suite.
const metapackage = "linux-image-amd64"

func newApt(dir string) (*apt, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("no %s: kernels are fetched as Debian packages; put a cache filled elsewhere under HOLDFAST_VM_CACHE", tool)
		}
	}
	var m aptSource
	if url := os.Getenv("HOLDFAST_VM_MIRROR"); url != "" {
		m.URI = url
	} else {
		var err error
		if m, err = machineMirror("/etc/apt"); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list, status := filepath.Join(dir, "sources.list"), filepath.Join(dir, "status")
	if err := os.WriteFile(list, []byte(sourcesList(m, kernelSuites)), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	return &apt{dir, []string{
		"-oDir::Etc::sourcelist=" + list,
		"-oDir::Etc::sourceparts=-",
		"-oDir::Etc::preferencesparts=-",
		"-oDir::State::lists=" + filepath.Join(dir, "lists"),
		"-oDir::State::status=" + status,
		"-oDir::Cache=" + filepath.Join(dir, "cache"),
		"-oAPT::Architecture=amd64",
		"-oAPT::Architectures=amd64",
		"-oAPT::Sandbox::User=", // _apt can't look into the caller's home
		"-oAcquire::Languages=none",
		"-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-oAcquire::Retries=3",
	}}, nil
}

func (a *apt) update() error {
	_, err := output("apt-get", slices.Concat(a.options, []string{"-q", "update"})...)
	return err
}

func (a *apt) show(pkg string) ([]map[string]string, error) {
	out, err := output("apt-cache", slices.Concat(a.options, []string{"show", pkg})...)
	return splitStanzas(out), err
}

// resolve finds the newest kernel of the series: what a suite's metapackage
// points to, or, when all suites have moved on, a versioned package that is
// still there.
func (a *apt) resolve(series string) (*packages, error) {
	metas, err := a.show(metapackage)
	if err != nil {
		return nil, err
	}
	image, version := pickImage(metas, series)
	if image == "" {
		out, err := output("apt-cache", slices.Concat(a.options, []string{"search", "--names-only", `^linux-image-[0-9]`})...)
		if err != nil {
			return nil, err
		}
		for _, name := range versionedImages(out, series) {
			stanzas, err := a.show(name)
			if err != nil {
				return nil, err
			}
			for _, s := range stanzas {
				if image == "" || compareVersions(s["version"], version) > 0 {
					image, version = name, s["version"]
				}
			}
		}
	}
	if image == "" {
		var have []string
		for _, m := range metas {
			have = append(have, m["version"])
		}
		return nil, fmt.Errorf("no suite of %v has a %s kernel (%s: %s)", kernelSuites, series, metapackage, strings.Join(have, ", "))
	}
	stanzas, err := a.show(image + "=" + version)
	if err != nil {
		return nil, err
	}
	if len(stanzas) == 0 {
		return nil, errors.New("apt-cache show " + image + " printed nothing")
	}
	return kernelPackages(image, version, stanzas[0]["depends"]), nil
}

var dependency = regexp.MustCompile(`[a-z0-9][a-z0-9+.-]*`)

// pickImage chooses among the metapackage's versions the newest of the series
// and returns the versioned package that it depends on.
func pickImage(metas []map[string]string, series string) (image, version string) {
	for _, m := range metas {
		v := m["version"]
		if !inSeries(v, series) || (image != "" && compareVersions(v, version) <= 0) {
			continue
		}
		for _, d := range strings.Split(m["depends"], ",") {
			if name := dependency.FindString(d); strings.HasPrefix(name, "linux-image-"+series) {
				image, version = name, v
			}
		}
	}
	return image, version
}

// versionedImages picks plain amd64 kernels of the series from apt-cache
// search's output: no cloud or realtime kernels, no unsigned or debug variants.
func versionedImages(search, series string) []string {
	form := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `[.+~-][^-]*(-[0-9]+)?-amd64$`)
	var out []string
	for _, line := range strings.Split(search, "\n") {
		name, _, _ := strings.Cut(line, " ")
		if form.MatchString(name) {
			out = append(out, name)
		}
	}
	return out
}

// kernelPackages adds the packages into which newer kernels are split: those
// of the same release that the image depends on.
func kernelPackages(image, version, depends string) *packages {
	p := &packages{
		release: strings.TrimPrefix(image, "linux-image-"),
		version: version,
		names:   []string{image},
	}
	for _, d := range strings.Split(depends, ",") {
		name := dependency.FindString(d)
		if strings.HasPrefix(name, "linux-") && strings.HasSuffix(name, "-"+p.release) && !slices.Contains(p.names, name) {
			p.names = append(p.names, name)
		}
	}
	return p
}

// download fetches the packages into a.dir.
func (a *apt) download(p *packages) error {
	args := slices.Concat([]string{"-c", `cd "$1" && shift && exec "$@"`, "sh", a.dir, "apt-get"}, a.options, []string{"-q", "download"})
	for _, n := range p.names {
		args = append(args, n+"="+p.version)
	}
	_, err := output("sh", args...)
	return err
}
