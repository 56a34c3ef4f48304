package stack

import (
	"os"
	"testing"

	"holdfast/hack/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.Child()
	fencedChild()
	os.Exit(m.Run())
}
