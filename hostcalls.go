package keyring

// The functions of the host that the keyring calls: which of them have not returned, and since when.

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/gate"
	"github.com/hashicorp/raft"
)

// How long a function of the host may take before Status names it.
const (
	hostPatience = 10 * time.Second
	dataPatience = time.Minute
	scanPatience = 10 * time.Minute // between two records of a scan

	storePatience = time.Minute // also between two reads of a backup that is put
)

// problemsPatience is how long Status waits for Config.Problems, and gate.Grace more.
const problemsPatience = 50 * time.Millisecond

// hostCalls are the host's functions that are being called.
type hostCalls struct {
	gate.Calls
	audited atomic.Uint64 // how often Config.Audit has returned
}

// watched returns a configuration whose functions are noted while they run.
func (h *hostCalls) watched(cfg Config) Config {
	if audit := cfg.Audit; audit != nil {
		cfg.Audit = func(e Event) {
			h.Watch("Config.Audit", hostPatience, func() { audit(e) })
			h.audited.Add(1)
		}
	}
	cfg.Metrics = watchedMetrics{cfg.Metrics, h}
	if data := cfg.Data; data != nil {
		w := watchedData{data, h}
		cfg.Data = w
		if counter, ok := data.(Counter); ok {
			cfg.Data = watchedCounter{w, counter}
		}
	}
	if store := cfg.Backups.Store; store != nil {
		cfg.Backups.Store = watchedStore{store, h}
	}
	return cfg
}

// carried returns the Call of a Transport, noted while it runs. It has until its deadline, and is given as
// long after that as other functions are.
func (h *hostCalls) carried(t Transport) func(context.Context, raft.ServerID, []byte) ([]byte, error) {
	return func(ctx context.Context, to raft.ServerID, request []byte) (answer []byte, err error) {
		patience := hostPatience
		if deadline, has := ctx.Deadline(); has {
			patience += max(0, time.Until(deadline))
		}
		h.Watch("Config.Transport", patience, func() { answer, err = t.Call(ctx, to, request) })
		return answer, err
	}
}

type watchedMetrics struct {
	Metrics
	calls *hostCalls
}

// SetGauge implements Metrics.
func (m watchedMetrics) SetGauge(name string, value float64, labels map[string]string) {
	m.calls.Watch("Config.Metrics", hostPatience, func() { m.Metrics.SetGauge(name, value, labels) })
}

// AddCounter implements Metrics.
func (m watchedMetrics) AddCounter(name string, growth float64, labels map[string]string) {
	m.calls.Watch("Config.Metrics", hostPatience, func() { m.Metrics.AddCounter(name, growth, labels) })
}

type watchedData struct {
	data  SealedData
	calls *hostCalls
}

// Under implements SealedData. What the keyring does with a record is not the host's time.
func (d watchedData) Under(ctx context.Context, key KeyID) iter.Seq2[Sealed, error] {
	return func(yield func(Sealed, error) bool) {
		c := d.calls.New("Config.Data.Under", scanPatience)
		defer d.calls.Forget(c)
		c.Enter()
		for s, err := range d.data.Under(ctx, key) {
			c.Leave()
			if !yield(s, err) {
				c.Enter()
				return
			}
			c.Enter()
		}
	}
}

// Replace implements SealedData.
func (d watchedData) Replace(ctx context.Context, batch []Replacement) (conflicts int, err error) {
	d.calls.Watch("Config.Data.Replace", dataPatience, func() { conflicts, err = d.data.Replace(ctx, batch) })
	return conflicts, err
}

type watchedCounter struct {
	watchedData
	counter Counter
}

// Count implements Counter.
func (d watchedCounter) Count(ctx context.Context, key KeyID) (n int, err error) {
	d.calls.Watch("Config.Data.Count", dataPatience, func() { n, err = d.counter.Count(ctx, key) })
	return n, err
}

// watchedWriter is the host's writer of a backup.
type watchedWriter struct {
	io.Writer
	calls *hostCalls
}

// Write implements io.Writer.
func (w watchedWriter) Write(b []byte) (n int, err error) {
	w.calls.Watch("the io.Writer of Backup", hostPatience, func() { n, err = w.Writer.Write(b) })
	return n, err
}

// watchedStore is the store of backups by schedule. What the keyring does meanwhile is not the store's time.
type watchedStore struct {
	store BackupStore
	calls *hostCalls
}

// Put implements BackupStore.
func (w watchedStore) Put(ctx context.Context, name string, r io.Reader) error {
	c := w.calls.New("Config.Backups.Store.Put", storePatience)
	defer w.calls.Forget(c)
	c.Enter()
	return w.store.Put(ctx, name, awaitedReader{r, c})
}

// awaitedReader is what a store reads from while the keyring makes more.
type awaitedReader struct {
	io.Reader
	call *gate.Call
}

// Read implements io.Reader.
func (r awaitedReader) Read(b []byte) (int, error) {
	r.call.Leave()
	defer r.call.Enter()
	return r.Reader.Read(b)
}

// Open implements BackupStore.
func (w watchedStore) Open(ctx context.Context, name string) (r io.ReadCloser, err error) {
	w.calls.Watch("Config.Backups.Store.Open", storePatience, func() { r, err = w.store.Open(ctx, name) })
	if err != nil {
		return nil, err
	}
	return watchedFile{r, w.calls}, nil
}

// watchedFile is a backup that is read back from a store.
type watchedFile struct {
	io.ReadCloser
	calls *hostCalls
}

// Read implements io.Reader.
func (f watchedFile) Read(b []byte) (n int, err error) {
	f.calls.Watch("the file of Config.Backups.Store.Open", storePatience, func() { n, err = f.ReadCloser.Read(b) })
	return n, err
}

// List implements BackupStore.
func (w watchedStore) List(ctx context.Context) (names []string, err error) {
	w.calls.Watch("Config.Backups.Store.List", storePatience, func() { names, err = w.store.List(ctx) })
	return names, err
}

// Remove implements BackupStore.
func (w watchedStore) Remove(ctx context.Context, name string) (err error) {
	w.calls.Watch("Config.Backups.Store.Remove", storePatience, func() { err = w.store.Remove(ctx, name) })
	return err
}

// hostProblems asks Config.Problems, one question at a time.
type hostProblems struct {
	ask   func() []Problem // nil if there is none
	calls *hostCalls
	gate  *gate.Gate

	turn  sync.Mutex                // held by who asks; others wait
	hangs atomic.Bool               // the last question was given up, and is not answered yet
	last  atomic.Pointer[[]Problem] // what was answered last; never changed
}

// problems are the host's. If it does not answer, they are those that it has answered last.
func (h *hostProblems) problems() []Problem {
	if h.ask == nil {
		return nil
	}
	h.refresh()
	if last := h.last.Load(); last != nil {
		return slices.Clone(*last)
	}
	return nil
}

// refresh asks, unless an earlier question is not answered yet. A panic of the host's is the caller's.
func (h *hostProblems) refresh() {
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.hangs.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), problemsPatience)
	defer cancel()
	h.hangs.Store(true)
	_, err := gate.Through(ctx, h.gate, func(context.Context) (struct{}, error) {
		defer h.hangs.Store(false)
		h.calls.Watch("Config.Problems", hostPatience, func() {
			all := h.ask()
			h.last.Store(&all)
		})
		return struct{}{}, nil
	})
	if errors.Is(err, ErrClosed) { // nobody was asked
		h.hangs.Store(false)
	}
}

// hostCallProblems name the functions of the host's that hang. While its FSM does, nothing is applied here.
func (o overview) hostCallProblems() (all []Problem) {
	add := func(calls map[string]time.Time, s Severity, and string) {
		for _, name := range slices.Sorted(maps.Keys(calls)) {
			all = append(all, Problem{Kind: ProblemHost, Severity: s, Since: calls[name],
				Detail: name + " has not returned since " + inUTC(calls[name]) + and})
		}
	}
	add(o.hostCalls, "", "")
	add(o.appCalls, SeverityCritical, ": this server applies no later entries, neither the host's nor the keyring's")
	return all
}
