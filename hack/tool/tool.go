// Package tool runs other programs for the long tests. None may hang: a test that waits for ever for
// mkfs or losetup says less than one that fails.
package tool

import (
	"fmt"
	"os/exec"
	"strings"
)

// limit is how long a program may run, in seconds, and grace what is left to it after a SIGTERM.
const (
	limit = "120"
	grace = "5"
)

// Run runs a program to its end; its words are the error's.
func Run(name string, args ...string) error {
	_, err := Output(name, args...)
	return err
}

// Output is Run, and gives what the program said, without the space around it.
func Output(name string, args ...string) (string, error) {
	out, err := exec.Command("timeout", append([]string{"-k", grace, limit, name}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
