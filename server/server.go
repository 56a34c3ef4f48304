package server

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/internal/users"
	"holdfast/standby"
	"holdfast/state"
)

// Exit codes of a server's process.
const (
	ExitOver = 0  // the device is over, or nobody wants it: not to be started again
	ExitLeft = 75 // EX_TEMPFAIL: left in order for the next server, which is to start at once
)

// Config is what a server needs to know.
type Config struct {
	Name     string // the device's
	RunDir   string // absolute
	StateDir string // absolute
	Version  string
	Build    string // identifies the program's file
	// While a server that is told to stop waits for its device's users: Force, when closed, has it
	// remove the device under them; Depart, when closed, has it leave the device to a server that
	// is to come, for which they wait. nil: never.
	Force, Depart <-chan struct{}
	// Locked, if not nil, is called once the device is this server's.
	Locked func()
	// Served, if not nil, is called with the number of the device's queues once these are served.
	Served func(queues int)
	// Ready, if not nil, is called once the socket answers. unanswered says for how long a queue
	// has owed a sign of life.
	Ready func(unanswered func() time.Duration)
	Log   zerolog.Logger
}

// A Phase is where a server is in its device's life.
type Phase string

// Phases.
const (
	Empty      Phase = "empty" // there is no record
	Creating   Phase = api.StateCreating
	Serving    Phase = "serving"
	Recovering Phase = api.StateRecovering // the driver has the device, and it waits for us
	Waiting    Phase = api.StateWaiting    // persistent, to be created again
	Lost       Phase = api.StateLost       // until somebody creates or removes it
	Removing   Phase = api.StateRemoving
)

// A Server serves one device.
type Server struct {
	*known
	ledger  *ledger
	cfg     Config
	log     zerolog.Logger
	times   times
	boot    string
	started time.Time
	kernel  kernel
	claims  claims
	sw      *standby.Switch
	lock    *state.DeviceLock
	journal *Journal
	front   *front
	users   users.Search

	turn     *turn
	recovery *recovery
	creation *creation
	removal  *removal
	ending   *ending
	errors   errorRate

	inspections inspections // of the images

	// alive ends with the server; creating, of these, when it is told to stop.
	alive        context.Context
	endLife      context.CancelFunc
	creating     context.Context
	stopCreating context.CancelFunc
	background   sync.WaitGroup
}

// Serve is the life of a server. It ends when the device does, when the device was left to
// another server, or with ctx, which is the wish to stop in order. The exit code says whether the
// process is to be started again.
func Serve(ctx context.Context, cfg Config) (exit int, err error) {
	return serve(ctx, cfg, newKernel(&cfg))
}

func serve(ctx context.Context, cfg Config, k kernel) (int, error) {
	s, err := start(ctx, cfg, k, usualTimes)
	if err != nil && ctx.Err() != nil {
		return ExitOver, nil // told to stop while it waited
	}
	if err != nil {
		return 1, err
	}
	defer s.close()
	if cfg.Ready != nil {
		cfg.Ready(s.Unanswered)
	}
	s.begin()
	return s.live(ctx), nil
}

// start becomes the device's server: it has the lock, answers on the socket, and has read the
// record. The turn is taken: begin comes before any operation.
func start(ctx context.Context, cfg Config, k kernel, times times) (_ *Server, err error) {
	s := newServer(cfg, k, times)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.lock, err = state.LockDevice(ctx, cfg.RunDir, cfg.Name, func(pid int, dying bool) {
		s.log.Warn().Msgf("waiting for the server before: %s", predecessor(pid, dying))
	})
	if err != nil {
		return nil, err
	}
	if cfg.Locked != nil {
		cfg.Locked()
	}
	if err := s.read(); err != nil {
		return nil, err
	}
	if s.front, err = listen(s); err != nil {
		return nil, err
	}
	return s, nil
}

func predecessor(pid int, dying bool) string {
	if dying {
		return api.DyingText(pid)
	}
	return fmt.Sprintf("process %d", pid)
}

func newServer(cfg Config, k kernel, times times) *Server {
	boot := state.BootID()
	s := &Server{cfg: cfg, log: cfg.Log.With().Str("device", cfg.Name).Logger(), boot: boot, started: time.Now(), kernel: k, times: times,
		turn: newTurn(cfg.Name), known: &known{name: cfg.Name, phase: Empty, used: time.Now()}}
	s.ledger = &ledger{known: s.known, log: s.log,
		records: state.Records{Dir: filepath.Join(cfg.StateDir, "devices"), Run: cfg.RunDir, Boot: boot, Failed: new(atomic.Pointer[string])}}
	s.recovery, s.creation, s.removal, s.ending = &recovery{Server: s}, &creation{Server: s}, &removal{s}, &ending{s}
	s.claims = claims{all: state.NewClaims(cfg.RunDir, cfg.Name), log: s.log}
	s.users.Find = k.users
	s.alive, s.endLife = context.WithCancel(context.Background())
	s.creating, s.stopCreating = context.WithCancel(s.alive)
	return s
}

// read takes in what there is to know of the device.
func (s *Server) read() error {
	var err error
	s.journal = OpenJournal(string(s.dir()), s.log)
	key, err := state.OpenKey(s.cfg.RunDir, s.log)
	if err != nil {
		return err
	}
	s.sw = standby.NewSwitch(key)
	s.background.Go(func() { key.Watch(s.alive, s.sw.Turned) })
	rec, problem, err := s.ledger.records.LoadOne(s.name)
	if err != nil {
		return err
	}
	if problem != nil {
		s.log.Error().Str("file", problem.File).Msgf("%s; %s", problem.Reason, problem.Advice)
	}
	s.turn.tryTake() // nobody else can have it yet
	switch {
	case rec == nil:
	case rec.BootID == s.boot && rec.ID >= 0:
		s.phase, s.problem = Recovering, "what the driver has of it is not known yet"
	case rec.Spec.Persist:
		s.phase, s.problem = Waiting, "it is about to be created again"
	default:
		s.phase, s.problem = Lost, whyLost(rec, s.boot)
	}
	s.rec = rec
	return nil
}

// dir is the device's in the run directory.
func (s *Server) dir() state.DeviceDir { return state.Run(s.cfg.RunDir).Device(s.name) }

// begin finds out what there is to be done for a device that has a record.
func (s *Server) begin() {
	defer s.turn.giveBack()
	if s.rec == nil {
		return
	}
	switch found := s.recovery.lookup(); {
	case found == leftWaiting:
		s.become(Recovering, fmt.Sprintf("its server (process %d) died or left", s.rec.PID))
		s.emit(api.EventRecovering, "%v is to be served again: %s", s.disk(s.rec), s.problem)
		s.background.Go(func() { s.recovery.keepTrying(s.alive) })
	case s.rec.Spec.Persist:
		s.creation.again()
	default:
		s.become(Lost, whyLost(s.rec, s.boot))
		s.log.Warn().Msgf("device is lost: %s; %s", s.problem, lostAdvice(s.name))
	}
}

// whyLost is for a device that the driver doesn't have any more.
func whyLost(rec *state.Record, boot string) string {
	switch {
	case rec.Closed:
		return ""
	case rec.BootID != boot:
		return "the machine went down while the device was served"
	}
	return fmt.Sprintf("its server (process %d) died", rec.PID)
}

func lostAdvice(name string) string {
	return fmt.Sprintf("'holdfast create %s' with the same images serves it again, 'holdfast remove %s' closes the images cleanly and forgets it", name, name)
}

// live waits for the end.
func (s *Server) live(ctx context.Context) int {
	idle := time.NewTicker(s.times.idle / 10)
	defer idle.Stop()
	for {
		select {
		case <-s.turn.ended:
			return s.turn.exit
		case <-idle.C:
			s.endIfIdle()
		case <-ctx.Done():
			return s.ending.stop()
		}
	}
}

// endIfIdle ends a server that has had nothing to do for long.
func (s *Server) endIfIdle() {
	if !s.turn.tryTake() {
		return
	}
	defer s.turn.giveBack()
	s.mu.Lock()
	idle := (s.phase == Empty || s.phase == Lost) && time.Since(s.used) > s.times.idle
	s.mu.Unlock()
	if idle {
		s.turn.finish(ExitOver)
	}
}

// close ends what runs in the background, and gives everything up but the device itself.
func (s *Server) close() {
	s.set(s.endLife) // nothing begins in the background after that
	done := make(chan struct{})
	go func() { s.background.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(s.times.closing):
		s.log.Warn().Msgf("what this server does in the background has not ended within %v, and is not waited for: it may hang in storage", s.times.closing)
	}
	if s.front != nil {
		s.front.close(s.times.answers)
	}
	s.claims.all.Close()
	if s.journal != nil {
		s.journal.Close()
	}
	s.kernel.close()
	if s.lock != nil {
		s.lock.Release()
	}
}

// disk is what the driver has of the record's device, if it has anything.
func (s *Server) disk(rec *state.Record) state.Disk { return rec.Disk(s.cfg.StateDir) }
