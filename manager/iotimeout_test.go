package manager

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The time-out is set in a moment without a request, and never with one in flight: the queue
// would be frozen until that is done, and all others in front of it.
func TestTimeoutIsSetOnlyWhenIdle(t *testing.T) {
	for name, inflight := range map[string]string{"idle": "       0        0\n", "reads": "       1        0\n", "writes": "       0       10\n", "idle later": "       1        0\n"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "queue", "io_timeout")
			put := func(path, text string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			put(path, "30000\n")
			put(filepath.Join(dir, "inflight"), inflight)
			ended := make(chan error, 1)
			go func() { ended <- setTimeout(t.Context(), path, "500") }()
			if name == "idle later" {
				time.Sleep(10 * time.Millisecond)
				put(filepath.Join(dir, "inflight~"), "       0        0\n")
				if err := os.Rename(filepath.Join(dir, "inflight~"), filepath.Join(dir, "inflight")); err != nil {
					t.Fatal(err)
				}
			}
			err := <-ended
			is, _ := os.ReadFile(path)
			want := "30000"
			if strings.HasPrefix(name, "idle") {
				want = "500"
			}
			if got := strings.TrimSpace(string(is)); got != want || err == nil != (want == "500") {
				t.Errorf("it is %s, want %s (%v)", got, want, err)
			}
		})
	}
}
