package server

import "sync"

// mostQuestions is how many questions to one path may hang at once: each has a thread, for as
// long as the path's storage doesn't answer.
const mostQuestions = 4

// questions are those that are under way.
var questions counted

// counted counts things under way, by path.
type counted struct {
	mu sync.Mutex
	n  map[string]int
}

// begin is false for one too many.
func (c *counted) begin(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[path] >= mostQuestions {
		return false
	}
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[path]++
	return true
}

func (c *counted) end(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[path]--; c.n[path] == 0 {
		delete(c.n, path)
	}
}
