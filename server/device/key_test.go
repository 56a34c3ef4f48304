package device

import (
	"errors"
	"sync"
	"sync/atomic"

	"holdfast/standby"
)

// testKey is a standby check of the process' own.
type testKey struct {
	*standby.Switch
	word    atomic.Uint32
	mu      sync.Mutex
	holders map[string]int
}

func newTestKey() *testKey {
	k := &testKey{holders: map[string]int{}}
	k.Switch = standby.NewSwitch(&k.word)
	return k
}

func (k *testKey) Enable(holder string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holders[holder]++
	k.word.Store(1)
	k.Turned()
}

func (k *testKey) Disable(holder string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.holders[holder] == 0 {
		return errors.New("not held")
	}
	if k.holders[holder]--; k.holders[holder] == 0 {
		delete(k.holders, holder)
	}
	if len(k.holders) == 0 {
		k.word.Store(0)
	}
	k.Turned()
	return nil
}
