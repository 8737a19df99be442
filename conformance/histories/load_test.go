package histories

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	paths   = 6 // in each epoch
	epoch   = 20 * time.Second
	writers = 8
	pace    = 10 * time.Millisecond // of each writer
	keep    = 10                    // keys: what are more are removed
	most    = 1500                  // rotations of a long run, more or less: each leaves a tombstone
)

// run is a lab under load, and what its clients have seen.
type run struct {
	*lab
	began     time.Time
	called    chan struct{} // gets one for each call that has had its effect, if anybody waits for it
	values    atomic.Int64  // that were put: each once, over all loads
	rotations atomic.Int64
	removals  int
	made      map[string]int // faults by kind
	first     string         // the key that was active when the load began
	settled   uint64         // the index of the log that all servers have applied at least

	// Of rotate, while it runs.
	known   map[string]bool   // keys that are in the history
	retired map[string]uint64 // at which index of the log at the latest, by key
	learned int64             // when the last status was asked for

	mu      sync.Mutex            // guards below
	secrets []porcupine.Operation // accesses of paths
	active  []porcupine.Operation // accesses of which key is active
	stored  []stored
}

// stored is a put: under which key, and at which index of the log.
type stored struct {
	key   string
	index uint64
}

// newRun starts a cluster, and waits until it is ready.
func newRun(ctx context.Context, t *testing.T) *run {
	t.Helper()
	r := &run{
		lab: newLab(t), began: time.Now(), called: make(chan struct{}),
		made: map[string]int{}, known: map[string]bool{}, retired: map[string]uint64{},
	}
	for _, h := range r.hosts {
		r.await(ctx, h, func(s status) bool { return s.Ready && s.Leader != "" })
	}
	r.first = r.await(ctx, r.hosts[0], func(s status) bool { return s.active() != "" }).active()
	r.known[r.first] = true
	r.checkHeld(r.first)
	return r
}

// load has clients put, get and ask, and rotate if it is wanted, until it is ended.
func (r *run) load(ctx context.Context, rotate bool) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var load sync.WaitGroup
	for w := range writers {
		load.Go(func() { r.write(ctx, w) })
	}
	if rotate {
		load.Go(func() { r.rotate(ctx) })
	}
	return func() {
		cancel()
		load.Wait()
	}
}

// paths are all at which there may be something.
func (r *run) paths() (all []string) {
	for e := range r.now()/int64(epoch) + 1 {
		for p := range paths {
			all = append(all, fmt.Sprintf("path/%d/%d", e, p))
		}
	}
	return all
}

func (r *run) now() int64 { return time.Since(r.began).Nanoseconds() }

// note adds an access to a history.
func (r *run) note(history *[]porcupine.Operation, client int, call, end int64, a access) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*history = append(*history, porcupine.Operation{ClientId: client, Input: a, Call: call, Return: end})
}

// succeeded counts a call.
func (r *run) succeeded() {
	select {
	case r.called <- struct{}{}:
	default:
	}
}

// write puts, gets, and asks which key is active.
func (r *run) write(ctx context.Context, client int) {
	random := rand.New(rand.NewPCG(uint64(client), 1))
	ticks := time.NewTicker(pace)
	defer ticks.Stop()
	for ctx.Err() == nil {
		h := r.hosts[random.IntN(len(r.hosts))]
		// Others from time to time, for porcupine takes the square of a history's length; those of before
		// stay under the keys of before.
		switch path := fmt.Sprintf("path/%d/%d", r.now()/int64(epoch), random.IntN(paths)); random.IntN(10) {
		default:
			r.put(h, client, path, fmt.Sprintf("%d.%d", client, r.values.Add(1)))
		case 6, 7, 8:
			r.get(h, client, path)
		case 9:
			r.ask(h, client)
			r.look(h)
		}
		<-ticks.C
	}
}

func (r *run) put(h *host, client int, path, value string) {
	var out struct {
		Key     string
		Version uint64
	}
	call := r.now()
	// Not the context of the load: it is to end by itself.
	_, o := r.call(context.Background(), h, http.MethodPut, "/v1/secrets/"+path, map[string]string{"value": value}, &out)
	end := r.now()
	switch o {
	case done:
		r.succeeded()
		r.note(&r.active, client, call, end, access{"active", false, out.Key})
		r.mu.Lock()
		r.stored = append(r.stored, stored{out.Key, out.Version})
		r.mu.Unlock()
	case unknown:
		end = forEver
	case nothing:
		return
	}
	r.note(&r.secrets, client, call, end, access{path, true, value})
}

func (r *run) get(h *host, client int, path string) {
	var out struct{ Value string }
	call := r.now()
	code, o := r.call(context.Background(), h, http.MethodGet, "/v1/secrets/"+path, nil, &out)
	if code == http.StatusGone {
		r.t.Errorf("I5: %s is gone, says %s", path, h.id) // nothing is removed by force
	}
	if o == done || code == http.StatusNotFound {
		r.succeeded()
		r.note(&r.secrets, client, call, r.now(), access{path, false, out.Value})
	}
}

func (r *run) ask(h *host, client int) {
	var out status
	call := r.now()
	if _, o := r.call(context.Background(), h, http.MethodGet, "/v1/status?consistent", nil, &out); o == done {
		r.succeeded()
		r.note(&r.active, client, call, r.now(), access{"active", false, out.active()})
		r.witness.saw(out)
	}
}

// look has a server say what it knows, however late that is.
func (r *run) look(h *host) {
	var out status
	if _, o := r.call(context.Background(), h, http.MethodGet, "/v1/status", nil, &out); o == done {
		r.witness.saw(out)
	}
}

// rotate rotates, each third time fully.
func (r *run) rotate(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		if r.rotateOnce(r.hosts[n%len(r.hosts)], n%3 == 0) {
			<-time.After(*runTime / most)
		} else {
			<-time.After(pace) // nobody leads: it would only burn
		}
	}
}

// rotateOnce has a server rotate and remove the oldest key, and reports whether it did rotate.
func (r *run) rotateOnce(h *host, full bool) bool {
	var out struct{ ID string }
	call := r.now()
	_, o := r.call(context.Background(), h, http.MethodPost, "/v1/keys", map[string]bool{"full": full}, &out)
	if o != done {
		return false
	}
	n := r.rotations.Add(1)
	r.note(&r.active, writers, call, r.now(), access{"active", true, out.ID})
	r.known[out.ID] = true
	r.checkHeld(out.ID)
	var now status
	asked := r.now()
	if _, o := r.call(context.Background(), h, http.MethodGet, "/v1/status?consistent", nil, &now); o != done {
		return true
	}
	r.learn(now, asked)
	if oldest := now.Keys[len(now.Keys)-1]; len(now.Keys) > keep && oldest.State != "active" {
		path := "/v1/keys/" + oldest.ID
		if n%2 == 0 {
			path += "?now"
		}
		if _, o := r.call(context.Background(), h, http.MethodDelete, path, nil, &struct{}{}); o == done {
			r.removals++
		}
	}
	return true
}

// learn takes from a consistent status, asked for at that time, which keys there are. One that no
// rotation has returned was made by a rotation of unknown outcome, since the status before.
func (r *run) learn(s status, asked int64) {
	r.witness.saw(s)
	for _, k := range s.Keys {
		if k.State == "prepublished" {
			continue
		}
		if !r.known[k.ID] {
			r.known[k.ID] = true
			r.note(&r.active, writers, r.learned, r.now(), access{"active", true, k.ID})
			r.checkHeld(k.ID)
		}
		// Those that are changed no more say when they were retired.
		if _, known := r.retired[k.ID]; !known && k.ID != s.active() {
			r.retired[k.ID] = k.Index
		}
	}
	r.learned = asked
}
