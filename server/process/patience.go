package process

import (
	"os"
	"time"

	"github.com/rs/zerolog"
)

// patience is a server's with the users of its device, once it was told to stop.
type patience struct {
	log       zerolog.Logger
	signals   <-chan os.Signal
	limit     time.Duration // 0: none
	succeeded func() bool   // another server follows this one
	sync      func()        // writes out what file systems have in memory
}

// syncLimit bounds the last sync, which may wait for storage that never answers.
const syncLimit = 20 * time.Second

// wait returns when it has come to an end, and logs what ended it: true, the device is to
// be removed under its users; false, it is left to the next server.
func (p *patience) wait() (remove bool) {
	var expired <-chan time.Time
	if p.limit > 0 {
		expired = time.After(p.limit)
	}
	select {
	case sig := <-p.signals:
		p.log.Warn().Str("signal", sig.String()).Msg("second signal: users are not waited for any more")
		return true
	case <-expired:
	}
	if p.succeeded() {
		return false
	}
	p.log.Warn().Msgf("the device is still in use after %v (--stop-timeout): file systems are synced, for at most %v, then I/O fails", p.limit, syncLimit)
	synced := make(chan struct{})
	go func() { p.sync(); close(synced) }()
	select {
	case <-synced:
		p.log.Info().Msg("file systems are synced")
	case <-time.After(syncLimit):
		p.log.Warn().Msgf("the sync of file systems has not ended within %v: what they have in memory may be lost", syncLimit)
	case sig := <-p.signals:
		p.log.Warn().Str("signal", sig.String()).Msg("second signal: the sync of file systems is not waited for, and what they have in memory may be lost")
	}
	return true
}
