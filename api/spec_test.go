package api

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"
)

// TestNames compares what is a name with the regular expressions that say it in the documents.
func TestNames(t *testing.T) {
	device, consumer, kernels := regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`), regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,63}$`), regexp.MustCompile(`^ublk[bc][0-9]+$`)
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.StringMatching(`[a-zA-Z0-9._:\-@\[{/ ]{0,70}`), rapid.StringMatching(`ublk[abc]?[0-9x]{0,3}`), rapid.String()).Draw(t, "name")
		if got, want := IsName(s), device.MatchString(s); got != want {
			t.Fatalf("IsName(%q) = %v", s, got)
		}
		if got, want := IsConsumer(s), consumer.MatchString(s); got != want {
			t.Fatalf("IsConsumer(%q) = %v", s, got)
		}
		if got, want := isKernels(s), kernels.MatchString(s); got != want {
			t.Fatalf("isKernels(%q) = %v", s, got)
		}
	})
}
