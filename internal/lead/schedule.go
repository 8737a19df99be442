package lead

// The goroutine in which the leader makes backups by a schedule.

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"filippo.io/age"
)

// Store is where backups by schedule are kept. The root documents it, as BackupStore.
type Store interface {
	Put(ctx context.Context, name string, r io.Reader) error
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	List(ctx context.Context) ([]string, error)
	Remove(ctx context.Context, name string) error
}

// ScheduleConfig says which backups are made, and where they are kept.
type ScheduleConfig struct {
	Every  time.Duration // from one to the next
	To     []age.Recipient
	Store  Store
	Keep   int            // how many files are kept; negative is all
	Verify []age.Identity // empty is not verified
	Clocks *local.Clocks
	Failed func() // is told of each attempt that fails
}

// Schedule is the goroutine that makes backups while this server leads. What it goes by is in the ring: a new leader makes the
// next backup when it is due.
type Schedule struct {
	*local.Server
	ScheduleConfig
	backups *Backups

	term   uint64    // in which it has led
	retry  mono.Time // nothing is tried before
	failed int       // attempts in a row
	runs   atomic.Bool

	mu  sync.Mutex // guards below
	was ScheduleStatus
}

// ScheduleStatus is what is wrong with the backups by schedule, as the leader knows it. On other servers nothing is.
type ScheduleStatus struct {
	Attempts *local.Failure // no backup can be made
	Tidying  *local.Failure // files that are no longer to be kept can't be removed
}

// NewSchedule has made nothing yet: see Run.
func NewSchedule(s *local.Server, b *Backups, c ScheduleConfig) *Schedule {
	return &Schedule{Server: s, ScheduleConfig: c, backups: b}
}

// Status is what is wrong now.
func (s *Schedule) Status() ScheduleStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.was
}

// Run makes backups until ctx ends.
func (s *Schedule) Run(ctx context.Context) {
	for {
		changed := s.FSM.Changed()
		if !local.Pause(ctx, changed, s.step(ctx)) {
			return
		}
	}
}

// step makes a backup, if one is due, and returns how long there is nothing to do.
func (s *Schedule) step(ctx context.Context) time.Duration {
	term := s.Term.Load()
	if !s.Leads(term) {
		s.note(func(was *ScheduleStatus) { *was = ScheduleStatus{} })
		return local.Idle
	}
	if s.term != term {
		s.term, s.retry, s.failed = term, 0, 0
	}
	if s.runs.Load() { // what was left behind has not come back: it tells when it does
		return local.Idle
	}
	ring := s.FSM.Ring()
	a := plan.NextBackup(ring, s.situation(), s.Clocks.RingClock(ring, ring.Backup.Time), s.Every)
	switch a.Kind {
	case plan.Compare:
		s.Clocks.CompareWithMost(ctx)
		return 0
	case plan.Backup:
		s.attempt(ctx, ring.Cluster)
		return 0
	case plan.Wait:
		return min(local.LookAgain, max(0, mono.Until(a.Until)))
	}
	return local.Idle
}

func (s *Schedule) situation() plan.Situation {
	return plan.Situation{
		Term: s.term, Clocks: s.Clocks.Known(), Now: s.Now(), Mono: mono.Now(), Servers: local.ServerIDs(s.Raft), Retry: s.retry,
	}
}

// attempt makes a backup, and then removes files that are no longer to be kept. It ends when this server does not lead in this
// term any more; that is no failure.
func (s *Schedule) attempt(ctx context.Context, cluster meta.ClusterID) {
	term, began := s.term, mono.Now()
	ctx, end := s.whileLeading(ctx, term)
	defer end()
	name, err := s.withStore(ctx, func(ctx context.Context, stalls *time.Timer) (string, error) {
		return s.backUp(ctx, stalls, cluster)
	})
	switch {
	case ctx.Err() != nil || s.Gate.Err() != nil || !s.Leads(term): // the next leader, or the next start, finds that one is due
	case err != nil:
		s.Logger.Error("could not make a scheduled backup", "error", err)
		s.retry = mono.Now().Add(plan.BackupRetry(s.failed, s.Every, mathrand.Float64()))
		s.failed++
		s.note(func(was *ScheduleStatus) { was.Attempts = again(was.Attempts, err) })
		s.Failed()
	case name == "": // the one that is noted stays due, and is kept
		s.retry, s.failed = began.Add(s.Every), 0
		s.note(func(was *ScheduleStatus) { was.Attempts = nil })
	default:
		s.Logger.Info("made a scheduled backup", "name", name)
		s.retry, s.failed = 0, 0
		s.note(func(was *ScheduleStatus) { was.Attempts = nil })
		_, err := s.withStore(ctx, func(ctx context.Context, stalls *time.Timer) (string, error) {
			return name, s.tidy(ctx, stalls, name)
		})
		if err != nil {
			s.Logger.Warn("could not remove old backups", "error", err)
		}
		if ctx.Err() == nil {
			s.note(func(was *ScheduleStatus) { was.Tidying = again(was.Tidying, err) })
		}
	}
}

// withStore runs what calls the store. Its context ends when stalls does, and what ignores that is left behind: nothing more
// is begun before it has come back.
func (s *Schedule) withStore(ctx context.Context, do func(context.Context, *time.Timer) (string, error)) (string, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	stalls := time.AfterFunc(storePatience, func() { end(errStalled) })
	defer stalls.Stop()
	s.runs.Store(true)
	return gate.Through(ctx, &s.Gate, func(ctx context.Context) (string, error) {
		defer s.FSM.Notify()
		defer s.runs.Store(false)
		return do(ctx, stalls)
	})
}

// whileLeading returns a context that ends when this server no longer leads in that term. end has to be called.
func (s *Schedule) whileLeading(ctx context.Context, term uint64) (leading context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for changed := s.FSM.Changed(); s.Leads(term); changed = s.FSM.Changed() {
			if !local.Pause(ctx, changed, local.Idle) {
				return
			}
		}
		cancel(s.FSM.NotLeader(s.Raft))
	})
	return ctx, func() {
		cancel(nil)
		watching.Wait()
	}
}

// storePatience is for how long a store may do nothing before the attempt is given up.
const storePatience = 10 * time.Minute

// discardPatience is for how long the file of an attempt that has failed is tried to be removed.
const discardPatience = 5 * time.Second

// backUp makes a backup, has it noted, and returns its name. What has failed before the note is proposed leaves no file; after that a
// file stays, for it may be the one that is noted. The name is empty if that is another, which has as many keys or more: this
// server may lack a prepublished key.
func (s *Schedule) backUp(ctx context.Context, stalls *time.Timer, cluster meta.ClusterID) (string, error) {
	var draw [4]byte
	rand.Read(draw[:]) // never fails
	name := backup.Name(cluster, s.Now(), draw)
	m, err := s.put(ctx, stalls, name)
	if err == nil {
		err = s.verify(ctx, stalls, name, m)
	}
	stalls.Stop()
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardPatience)
		defer cancel()
		if err := s.Store.Remove(ctx, name); err != nil {
			s.Logger.Warn("could not remove the file of a failed backup", "name", name, "error", err)
		}
		return "", err
	}
	err = s.backups.Confirm(ctx, m.SHA256)
	switch noted := s.FSM.Ring().Backup; {
	case noted.Digest == m.SHA256:
		return name, nil
	case err != nil:
		return "", fmt.Errorf("confirm %s: %w", name, err)
	default:
		s.Logger.Warn("did not note a scheduled backup: the one that is noted has as many keys or more", "name", name, "noted", noted.Time)
		return "", nil
	}
}

var (
	errStalled = fmt.Errorf("the store has done nothing for %v", storePatience)
	errNotAll  = errors.New("the store has not read the whole backup")
)

// put writes a backup into the store, as it is made.
func (s *Schedule) put(ctx context.Context, stalls *time.Timer, name string) (m backup.Manifest, err error) {
	ctx, end := context.WithCancelCause(ctx)
	pipe, w := io.Pipe()
	var writing sync.WaitGroup
	var failed error // what the store has no part in
	writing.Go(func() {
		var err error
		if m, err = s.backups.Write(ctx, w, s.To); ctx.Err() == nil {
			failed = err
		}
		w.CloseWithError(err)
	})
	writing.Go(func() { // neither side waits for the other any longer
		<-ctx.Done()
		w.CloseWithError(context.Cause(ctx))
	})
	r := &takenReader{Reader: pipe, stalls: stalls}
	err = s.Store.Put(ctx, name, r)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && !r.ended {
		err = errNotAll
	}
	end(cmp.Or(err, context.Canceled))
	writing.Wait()
	switch {
	case failed != nil:
		return backup.Manifest{}, failed
	case err != nil:
		return backup.Manifest{}, fmt.Errorf("store %s: %w", name, err)
	}
	return m, nil
}

// takenReader is what a store takes a backup from. While it waits for more, the store does not stall.
type takenReader struct {
	io.Reader
	stalls *time.Timer
	ended  bool // the store has seen the end
}

// Read implements io.Reader.
func (r *takenReader) Read(b []byte) (int, error) {
	r.stalls.Stop()
	defer r.stalls.Reset(storePatience)
	n, err := r.Reader.Read(b)
	r.ended = err == io.EOF
	return n, err
}

// verify reads a backup back from the store.
func (s *Schedule) verify(ctx context.Context, stalls *time.Timer, name string, m backup.Manifest) error {
	if len(s.Verify) == 0 {
		return nil
	}
	stalls.Reset(storePatience)
	r, err := s.Store.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("read %s back: %w", name, err)
	}
	defer r.Close()
	_, _, err = backup.Read(ctx, givenReader{r, stalls}, backup.Options{Identities: s.Verify, Digest: m.SHA256}, backup.Receiver{})
	if err != nil {
		return fmt.Errorf("read %s back: %w", name, err)
	}
	return nil
}

// givenReader is what a store gives back.
type givenReader struct {
	io.Reader
	stalls *time.Timer
}

// Read implements io.Reader.
func (r givenReader) Read(b []byte) (int, error) {
	r.stalls.Reset(storePatience)
	return r.Reader.Read(b)
}

// tidy removes the files that are no longer to be kept, now that one more is.
func (s *Schedule) tidy(ctx context.Context, stalls *time.Timer, made string) error {
	if s.Keep < 0 {
		return nil
	}
	names, err := s.Store.List(ctx)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	var errs []error
	for _, name := range backup.Surplus(names, made, s.Keep, s.Now()) {
		stalls.Reset(storePatience)
		if err := s.Store.Remove(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", name, err))
			continue
		}
		s.Logger.Info("removed an old backup", "name", name)
	}
	return errors.Join(errs...)
}

// note changes what is known to be wrong.
func (s *Schedule) note(change func(*ScheduleStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.was)
}

// again is what is known after one more time of what has failed before, or not: nil if it has succeeded.
func again(before *local.Failure, err error) *local.Failure {
	switch {
	case err == nil:
		return nil
	case before == nil:
		return &local.Failure{Err: err, Since: mono.Now()}
	}
	return &local.Failure{Err: err, Since: before.Since}
}
