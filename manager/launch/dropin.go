package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// dropIn has a file beside a unit be of some text, and not be for an empty one. systemd reads its
// units again when that is a change.
func (s *Systemd) dropIn(ctx context.Context, name, dir, file string, text func() (string, error)) error {
	if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
		return err
	}
	want, err := text()
	if err != nil {
		return fmt.Errorf("%s of %s: %w", file, name, err)
	}
	changed, err := writeDropIn(filepath.Join(dir, unitName(name)+".d"), file, []byte(want))
	if err != nil {
		return fmt.Errorf("%s of %s: %w", file, name, err)
	}
	if !changed {
		return nil
	}
	return s.reset.wait(ctx)
}

// writeDropIn says whether it changed anything.
func writeDropIn(dir, file string, want []byte) (bool, error) {
	path := filepath.Join(dir, file)
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	switch {
	case len(want) == 0 && err != nil, err == nil && bytes.Equal(have, want):
		return false, nil
	case len(want) == 0:
		if err := os.Remove(path); err != nil {
			return false, err
		}
		// There may be an operator's.
		if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			return true, err
		}
		return true, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	if err := renameio.WriteFile(path, want, 0o644); err != nil {
		return false, err
	}
	return true, syncDir(dir)
}

// mountsFor is the drop-in that orders a unit after the file systems of paths, and has them be
// there.
func mountsFor(paths []string) (string, error) {
	var quoted []string
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			return "", fmt.Errorf("%q is no absolute path", p)
		}
		quoted = append(quoted, quote(sayable(p)))
	}
	if len(quoted) == 0 {
		return "", nil
	}
	slices.Sort(quoted)
	var b strings.Builder
	b.WriteString("# Where the images are: holdfast writes this.\n[Unit]\n")
	for _, q := range slices.Compact(quoted) {
		fmt.Fprintf(&b, "RequiresMountsFor=%s\n", q)
	}
	return b.String(), nil
}

// sayable is a path, up to the first directory that has a name which no line of a unit can
// have: then it is the file system above that counts.
func sayable(path string) string {
	path = filepath.Clean(path)
	for !valid(path) {
		path = filepath.Dir(path)
	}
	return path
}

func valid(path string) bool {
	return utf8.ValidString(path) && !strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// execStart is the drop-in that has a unit run another program.
func execStart(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	// systemd's string_is_safe().
	if !filepath.IsAbs(path) || !valid(path) || strings.ContainsAny(path, `"'\`) {
		return "", fmt.Errorf("the program %q: systemd takes only absolute paths without quotes, backslashes and control characters", path)
	}
	return fmt.Sprintf("# The program of before: holdfast writes this.\n[Service]\nExecStart=\nExecStart=%s %%I\n", quote(path)), nil
}

// quote has a text be one word of a unit's line: systemd takes quotes and backslashes away, and %
// for a specifier.
func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(text) + `"`
}
