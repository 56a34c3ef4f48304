// Package debian fetches Debian packages for a use outside the machine's own
// packages: other suites' kernels, sources and headers. It goes through the
// machine's configured mirror and key ring, with lists, state and cache of its
// own, so that nothing of the machine's package system changes.
//
// HOLDFAST_VM_MIRROR names a mirror where the machine's apt sources have none.
package debian

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Apt runs apt's tools with a sources list, state and cache of its own, so that
// the machine's stay as they are.
type Apt struct {
	dir     string
	options []string
}

// New readies an Apt in dir, which should be a fresh directory, for Debian's
// given suites. A suite that the mirror does not have is passed over.
func New(dir string, suites ...string) (*Apt, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("no %s: this needs Debian packages, and a Debian to fetch them with", tool)
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
	if err := os.WriteFile(list, []byte(sourcesList(m, suites)), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	return &Apt{dir, []string{
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

// Update fetches the suites' lists. When one of the suites is gone it fails, and
// the others are there all the same.
func (a *Apt) Update() error {
	_, err := Output("apt-get", slices.Concat(a.options, []string{"-q", "update"})...)
	return err
}

// Show returns every version of a package that the suites have, as its fields by
// name in lower case.
func (a *Apt) Show(pkg string) ([]map[string]string, error) {
	out, err := Output("apt-cache", slices.Concat(a.options, []string{"show", pkg})...)
	return Stanzas(out), err
}

// Search returns the lines of apt-cache search for package names that match.
func (a *Apt) Search(pattern string) (string, error) {
	return Output("apt-cache", slices.Concat(a.options, []string{"search", "--names-only", pattern})...)
}

// Newest returns the newest version of a package that the suites have and whose
// version belongs to the series; an empty series takes any.
func (a *Apt) Newest(pkg, series string) (string, error) {
	stanzas, err := a.Show(pkg)
	if err != nil {
		return "", err
	}
	newest := ""
	for _, s := range stanzas {
		v := s["version"]
		if (series == "" || InSeries(v, series)) && (newest == "" || CompareVersions(v, newest) > 0) {
			newest = v
		}
	}
	if newest == "" {
		return "", fmt.Errorf("no suite has a version of %s that belongs to %q", pkg, series)
	}
	return newest, nil
}

// Fetch downloads packages, each NAME=VERSION, and unpacks them over each other
// under tree.
func (a *Apt) Fetch(tree string, packages ...string) error {
	args := slices.Concat([]string{"-c", `cd "$1" && shift && exec "$@"`, "sh", a.dir, "apt-get"}, a.options, []string{"-q", "download"}, packages)
	if _, err := Output("sh", args...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, d := range debs {
		if _, err := Output("dpkg-deb", "-x", d, tree); err != nil {
			return err
		}
		if err := os.Remove(d); err != nil {
			return err
		}
	}
	return nil
}

// Output runs a command and returns what it prints; its error has the last
// lines of its standard error.
func Output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		tail := lines[max(0, len(lines)-5):]
		err = fmt.Errorf("%s: %w: %s", name, err, strings.Join(tail, "; "))
	}
	return string(out), err
}
