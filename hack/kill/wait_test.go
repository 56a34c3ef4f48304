package kill

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a program that must not hang.
func command(name string, args ...string) error {
	_, err := output(name, args...)
	return err
}

func output(name string, args ...string) (string, error) {
	out, err := exec.Command("timeout", append([]string{"-k", "5", "120", name}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// wait calls f until it returns nil, or returns its last error. Two thirds of the time it leaves to those who
// are waited for.
func wait(timeout time.Duration, f func() error) error {
	for deadline := time.Now().Add(timeout); ; {
		began := time.Now()
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
		time.Sleep(max(10*time.Millisecond, 2*time.Since(began)))
	}
}

// round is for logs.
func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
