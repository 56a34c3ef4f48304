package control

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"holdfast/ploop"
	"holdfast/state"
)

// TestQuestionsThatHang gives a file in hung storage again and again: few questions hang with
// it, others are answered, and so is this one when the storage has come back.
func TestQuestionsThatHang(t *testing.T) {
	image := ploop.ImageRef{Path: "/hung"}
	hang := make(chan struct{})
	before := runtime.NumGoroutine()
	for i := range 20 {
		_, err := answered(time.Millisecond, image, func() ([]state.ImageID, error) { <-hang; return nil, nil })
		if want := "earlier questions"; err == nil || (i >= mostQuestions) != strings.Contains(err.Error(), want) {
			t.Fatalf("question %d: %v", i, err)
		}
	}
	if n := runtime.NumGoroutine() - before; n > mostQuestions {
		t.Errorf("20 questions that hang are %d goroutines", n)
	}
	if _, err := answered(time.Minute, ploop.ImageRef{Path: "/other"}, func() ([]state.ImageID, error) { return nil, nil }); err != nil {
		t.Error(err)
	}
	close(hang)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		_, err := answered(time.Minute, image, func() ([]state.ImageID, error) { return nil, nil })
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
