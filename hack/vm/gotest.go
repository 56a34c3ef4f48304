package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"holdfast/hack/vm/guest"
)

// compileTests builds the test binaries of the packages that match the
// patterns into outDir/tests and returns the commands that run them. They are
// built on the host: the guest is slow, and has no module cache to write to.
func compileTests(patterns []string, race bool, tags, outDir string, env, flags []string, timeout time.Duration) ([]guest.Command, error) {
	dir := filepath.Join(outDir, "tests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	build := []string{"-tags=" + tags}
	goEnv := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		build = append(build, "-race")
		goEnv = append(os.Environ(), "CGO_ENABLED=1")
	}
	goRun := func(args ...string) (string, error) {
		cmd := exec.Command("go", args...)
		cmd.Env = goEnv
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
		return string(out), nil
	}
	list := append([]string{"list", "-tags=" + tags, "-f", "{{.ImportPath}}\t{{.Dir}}\t{{len .TestGoFiles}} {{len .XTestGoFiles}}"}, patterns...)
	found, err := goRun(list...)
	if err != nil {
		return nil, err
	}
	var commands []guest.Command
	for _, line := range strings.Split(strings.TrimSpace(found), "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 3 {
			return nil, fmt.Errorf("go list printed %q", line)
		}
		pkg, src := f[0], f[1]
		if f[2] == "0 0" {
			fmt.Printf("?   \t%s\t[no test files]\n", pkg)
			continue
		}
		name := strings.ReplaceAll(pkg, "/", "_") + ".test"
		args := append([]string{"test", "-c", "-o", filepath.Join(dir, name)}, build...)
		if _, err := goRun(append(args, pkg)...); err != nil {
			return nil, err
		}
		// Earlier than our own time-out, because the binary can tell which
		// test it is that hangs.
		bound := timeout - min(30*time.Second, timeout/4)
		argv := []string{guest.ResultsDir + "/tests/" + name, "-test.paniconexit0", "-test.v", "-test.timeout=" + bound.String()}
		commands = append(commands, guest.Command{
			Args: append(argv, flags...), Dir: src, Env: env, Package: pkg,
		})
	}
	return commands, nil
}
