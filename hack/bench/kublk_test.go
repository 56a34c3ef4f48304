package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNewestKublk(t *testing.T) {
	if got := newestSources("linux-source-6.12 - source\nlinux-source-7.9 - source\nlinux-source-7.10 - source\nlinux-source-7.2 - source\n"); got != "7.10" {
		t.Errorf("sources of %q, want 7.10", got)
	}
	if got := newestSources(""); got != "" {
		t.Errorf("sources of %q from nothing", got)
	}
	cache := t.TempDir()
	if got := newestKublk(cache); got != "" {
		t.Errorf("%q in an empty cache", got)
	}
	for _, name := range []string{"kublk-7.9", "kublk-7.10", "kublk-7.2", "kublk-7.11.new"} {
		if err := os.WriteFile(filepath.Join(cache, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := newestKublk(cache), filepath.Join(cache, "kublk-7.10"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
