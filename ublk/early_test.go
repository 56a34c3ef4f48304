package ublk

import (
	"slices"
	"testing"
)

// What comes before the handler is admitted goes to it then, in its order, and what comes
// later as ever.
func TestAdmit(t *testing.T) {
	var got []uint16
	h := funcHandler{begin: func(r *Request) { got = append(got, r.tag) }}
	q := &Queue{handler: new(early)}
	if err := q.openMailbox(); err != nil {
		t.Fatal(err)
	}
	defer q.wake.Close()
	d := &Device{queues: []*Queue{q}, handler: h}
	q.handler.Begin(&Request{tag: 3})
	q.handler.Begin(&Request{tag: 1})
	d.admit()
	if got != nil {
		t.Errorf("%v came on another thread than the queue's", got)
	}
	q.collect()
	q.handler.Begin(&Request{tag: 2})
	d.admit() // Stop does, whether or not Start has
	q.collect()
	if want := []uint16{3, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	q.closeMailbox()
	d.admit()
}
