package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// TestRekeyGraceWaitsForWritersWithoutAFence.
func TestRekeyGraceWaitsForWritersWithoutAFence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, true, func(cfg *keyring.Config) { cfg.RekeyGrace = time.Hour })
		rc.Store("r", 10)
		old, leader := rc.Active(), rc.Leader()
		late, err := leader.Keyring.Encrypt([]byte("late"), []byte("late"))
		if err != nil {
			t.Fatal(err)
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		time.Sleep(59 * time.Minute) // virtual
		if rc.State(old) != keyring.StateRekeying || rc.Under(old) > 0 {
			t.Errorf("%s with %d records", rc.State(old), rc.Under(old))
		}
		if _, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: "late", New: late}); err != nil {
			t.Fatal(err)
		}
		rc.Written["late"] = "late"
		rc.Await(old, keyring.StateDeprecated)
		if rc.Check("moved"); rc.Under(old) > 0 {
			t.Errorf("deprecated with %d records", rc.Under(old))
		}
	})
}

// TestRekeyRateIsKept.
func TestRekeyRateIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) { cfg.RekeyRate = 100 })
		rc.Store("r", 1000)
		old := rc.Active()
		rc.Rotate(keyring.RotateOptions{Full: true})
		began := time.Now()
		rc.Await(old, keyring.StateDeprecated)
		if d := time.Since(began); d < 9*time.Second || d > 12*time.Second {
			t.Errorf("1000 records at 100 a second took %v", d)
		}
	})
}

// odd is SealedData that does not do what it should.
type odd struct {
	*keyringtest.RecordsData
	under   func(keyring.KeyID) iter.Seq2[keyring.Sealed, error]
	replace func() (int, error)
}

func (o odd) Under(ctx context.Context, id keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	if o.under != nil {
		return o.under(id)
	}
	return o.RecordsData.Under(ctx, id)
}

func (o odd) Replace(ctx context.Context, batch []keyring.Replacement) (int, error) {
	if o.replace != nil {
		return o.replace()
	}
	return o.RecordsData.Replace(ctx, batch)
}

// TestKeyStaysWhileItsDataCannotBeTold: an error in the middle of a scan is no clean scan, and a
// Replace that has no effect is reported and not repeated for ever.
func TestKeyStaysWhileItsDataCannotBeTold(t *testing.T) {
	t.Parallel()
	broken := errors.New("index is broken")
	var replaced atomic.Int64
	for what, o := range map[string]odd{
		"index is broken": {under: func(keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
			return func(yield func(keyring.Sealed, error) bool) { yield(keyring.Sealed{}, broken) }
		}},
		"is unchanged after Replace": {replace: func() (int, error) { replaced.Add(1); return 0, nil }},
	} {
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) {
				o.RecordsData = cfg.Data.(*keyringtest.RecordsData)
				cfg.Data = o
			})
			rc.Store("r", 10)
			old := rc.Active()
			rc.Rotate(keyring.RotateOptions{Full: true})
			time.Sleep(time.Hour) // virtual
			if rc.State(old) != keyring.StateRekeying {
				t.Errorf("%s: %s", what, rc.State(old))
			}
			if st, err := rc.Leader().Keyring.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(st.Problems), what) {
				t.Errorf("%v, %v", st.Problems, err)
			}
		})
	}
	if n := replaced.Load(); n == 0 || n > 200 {
		t.Errorf("Replace without effect was called %d times in an hour", n)
	}
}

// TestMovesThatOthersAreQuickerWithAreFewer: each is an entry of raft's log, whatever the host says of it.
func TestMovesThatOthersAreQuickerWithAreFewer(t *testing.T) {
	t.Parallel()
	for name, conflicts := range map[string]int{"all of them": 10, "some of them": 1} {
		var replaced atomic.Int64
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) {
				cfg.Data = odd{RecordsData: cfg.Data.(*keyringtest.RecordsData), replace: func() (int, error) {
					replaced.Add(1)
					return conflicts, nil
				}}
			})
			rc.Store("r", 10)
			rc.Rotate(keyring.RotateOptions{Full: true})
			leader := rc.Leader()
			time.Sleep(time.Minute) // virtual
			if p := keyringtest.Problems(t, leader, keyring.ProblemRekey); len(p) > 0 {
				t.Errorf("%s: writers may be quicker for a minute: %v", name, p)
			}
			time.Sleep(time.Hour)
			if p := keyringtest.Problems(t, leader, keyring.ProblemRekey); len(p) != 1 || !strings.Contains(p[0].Detail, "tries in a row have moved nothing") {
				t.Errorf("%s: nothing was moved for an hour, and Status says %v", name, p)
			}
		})
		if n := replaced.Load(); n < 10 || n > 200 {
			t.Errorf("%s: Replace was called %d times in an hour", name, n)
		}
	}
}

// nomadData is records of Nomad's in a database.
type nomadData struct {
	mu  sync.Mutex // guards below
	all map[string]keyring.Sealed
}

func (d *nomadData) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		d.mu.Lock()
		all := slices.Collect(maps.Values(d.all))
		d.mu.Unlock()
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (d *nomadData) Replace(_ context.Context, batch []keyring.Replacement) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range batch {
		d.all[r.Ref] = keyring.Sealed{Ref: r.Ref, Ciphertext: r.New, AAD: r.AAD}
	}
	return 0, nil
}

// TestWhatNomadSealedIsMovedToo: an adopted key does not go while its data is Nomad's.
func TestWhatNomadSealedIsMovedToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, keys, _ := keyringtest.NomadDisk(t)
		k := keys[0]
		data := &nomadData{all: map[string]keyring.Sealed{}}
		for i := range 300 {
			ref := fmt.Sprint("var/", i)
			data.all[ref] = keyring.Sealed{Ref: ref, Ciphertext: k.Seal(ref), AAD: []byte(ref), Nomad: true}
		}
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Disk:      func(raft.ServerID) *keyringtest.Disk { return disk },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data = data },
		})
		leader := keyringtest.Ready(t, c)
		if err := leader.Keyring.Remove(t.Context(), keyring.KeyID(k.ID), keyring.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		for ref, s := range data.all {
			if got, err := leader.Keyring.Decrypt(s.Ciphertext, []byte(ref)); err != nil || string(got) != ref {
				t.Errorf("%s: %q, %v", ref, got, err)
			}
		}
	})
}

// TestWithoutDataNothingIsProven: no full rotation, no removal of a key that was active; with
// NoData both are, at once.
func TestWithoutDataNothingIsProven(t *testing.T) {
	t.Parallel()
	for _, data := range []keyring.SealedData{nil, keyring.NoData{}} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data = data }})
			leader := keyringtest.Ready(t, c)
			old := keyringtest.Ring(leader.FSM).Active().ID
			want := error(nil)
			if data == nil {
				want = keyring.ErrNoData
			}
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); !errors.Is(err, want) {
				t.Errorf("full rotation with %T: %v", data, err)
			}
			if data == nil {
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := leader.Keyring.Remove(t.Context(), keyring.KeyID(old), keyring.RemoveOptions{}); !errors.Is(err, want) {
				t.Errorf("remove with %T: %v", data, err)
			}
			if removed := keyringtest.Ring(leader.FSM).WasRemoved(old); removed != (data != nil) {
				t.Errorf("removed with %T: %t", data, removed)
			}
			if keys := keyringtest.Ring(leader.FSM).Keys; data == nil && (len(keys) != 2 || keys[0].State == meta.StateRekeying) {
				t.Errorf("%d keys", len(keys))
			}
		})
	}
}

// endless is SealedData of any number of records that has only one in memory.
type endless struct {
	one         keyring.Sealed
	total, done int
	batches     int
	heap        uint64 // the most that was in use when a scan had just ended
}

// Under implements keyring.SealedData.
func (e *endless) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for i := e.done; i < e.total; i++ {
			s := e.one
			s.Ref = fmt.Sprint(i)
			s.Ciphertext = append([]byte(nil), e.one.Ciphertext...) // as from a disk
			if !yield(s, nil) {
				return
			}
		}
	}
}

// Replace implements keyring.SealedData.
func (e *endless) Replace(_ context.Context, batch []keyring.Replacement) (int, error) {
	if e.batches++; e.batches%8 == 1 { // the first of a scan; the others of it are in memory too
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		e.heap = max(e.heap, m.HeapAlloc)
	}
	e.done += len(batch)
	return 0, nil
}

// TestRekeyNeedsNoMoreMemoryForMoreRecords: 12 times as many records of 1 KiB, 200 MiB of them. It measures the memory
// of the process, so it does not run in parallel with other tests.
func TestRekeyNeedsNoMoreMemoryForMoreRecords(t *testing.T) {
	heap := func(records int) (most uint64) {
		synctest.Test(t, func(t *testing.T) {
			e := &endless{}
			c := keyringtest.NewCluster(t, keyringtest.Options{
				Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data, cfg.Rotation.Every = e, -1 },
			})
			leader := keyringtest.Ready(t, c)
			sealed, err := leader.Keyring.Encrypt(make([]byte, 1<<10), nil)
			if err != nil {
				t.Fatal(err)
			}
			e.one, e.total = keyring.Sealed{Ciphertext: sealed}, records
			old := keyringtest.Ring(leader.FSM).Active().ID
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
				t.Fatal(err)
			}
			keyringtest.AwaitState(leader.Keyring, keyring.KeyID(old), keyring.StateDeprecated)
			if e.done != records {
				t.Errorf("%d records of %d are moved", e.done, records)
			}
			most = e.heap
		})
		return most
	}
	few, many := heap(16<<10), heap(200<<10)
	if t.Logf("%d and %d KiB", few>>10, many>>10); many > few+few/4 {
		t.Errorf("%d KiB in use, %d with fewer records", many>>10, few>>10)
	}
}

func TestMetricsOfARekey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sink := keyringtest.NewFigures()
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) { cfg.Metrics, cfg.MetricsEvery = sink, -1 })
		rc.Store("a", 300)
		old := rc.Active()
		rc.Spoil("a/7")
		rc.Spoil("a/8")
		leader := rc.Leader()
		d := rc.DataOf(leader)
		d.Note(func() {
			d.Replacing = func() error { // a writer is quicker with one of the batch
				c, err := leader.Keyring.Encrypt([]byte("newer"), []byte("a/1"))
				rc.Written["a/1"] = "newer"
				errs, e := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: "a/1", New: c})
				return errors.Join(append(errs, err, e)...)
			}
		})
		rc.Rotate(keyring.RotateOptions{Full: true})
		time.Sleep(10 * time.Minute) // virtual
		figures := func() (moved, conflicts, left, poisoned float64) {
			gauges, counters := sink.Get()
			key := ";key=" + old.String()
			return counters["keyring.rekey.moved"+key], counters["keyring.rekey.conflicts"+key],
				gauges["keyring.rekey.left"+key], gauges["keyring.rekey.poisoned"+key]
		}
		if moved, conflicts, left, poisoned := figures(); moved != 297 || conflicts != 1 || left != 2 || poisoned != 2 {
			t.Errorf("moved %v, conflicts %v, left %v, poisoned %v", moved, conflicts, left, poisoned)
		}
		rc.Store("a", 9) // seals both again
		rc.Await(old, keyring.StateDeprecated)
		time.Sleep(time.Minute) // virtual
		if moved, conflicts, left, poisoned := figures(); moved != 297 || conflicts != 1 || left != 0 || poisoned != 0 {
			t.Errorf("in the end moved %v, conflicts %v, left %v, poisoned %v", moved, conflicts, left, poisoned)
		}
	})
}

// TestProgressOfKeysThatWaitForTheirTurn is there at once, with what is left, and ends with what a
// writer has moved.
func TestProgressOfKeysThatWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) { cfg.RekeyRate = 1 })
		for i := range 3 {
			rc.Store(string(rune('a'+i)), i+1) // 1, 2 and 3 under a key each
			if i < 2 {
				rc.Rotate(keyring.RotateOptions{})
			}
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		synctest.Wait()
		left := func() (left []int) {
			st, err := rc.Leader().Keyring.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range slices.Backward(st.Keys) { // the oldest first
				for _, p := range st.Rekeying {
					if p.Key == key.ID {
						left = append(left, p.Left)
					}
				}
			}
			return left
		}
		if got := left(); len(got) != 3 || got[1] != 2 || got[2] != 3 {
			t.Errorf("left are %v", got)
		}
		rc.Store("c", 2) // a writer moves two
		time.Sleep(time.Minute)
		if got := left(); len(got) > 0 {
			t.Errorf("a minute later %v", got)
		}
	})
}

// TestChangedTellsOfARekey: a caller that takes the channel, looks, and waits, sees all of it, and what is
// told of keys and of their progress is of one moment.
func TestChangedTellsOfARekey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) { cfg.RekeyRate = 10 })
		rc.Store("r", 300)
		rc.Spoil("r/1")
		k := rc.Leader().Keyring
		await := func(within time.Duration, what string, wanted func(keyring.Status) bool) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			for {
				changed := k.Changed()
				st, err := k.Status(ctx)
				if err != nil {
					t.Fatal(err)
				}
				rekeying := slices.DeleteFunc(st.Keys, func(key keyring.Key) bool { return key.State != keyring.StateRekeying })
				if len(rekeying) != len(st.Rekeying) {
					t.Errorf("rekeying are %v, the progress is of %v", rekeying, st.Rekeying)
				}
				if wanted(st) {
					return
				}
				select {
				case <-changed:
				case <-ctx.Done():
					t.Fatalf("nobody told of %s: %+v", what, st)
				}
			}
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		await(10*time.Second, "the first batch", func(st keyring.Status) bool { return st.Rekeying[0].Moved == 256 })
		time.Sleep(time.Hour) // virtual
		await(time.Minute, "the problem", func(st keyring.Status) bool {
			return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemRekey })
		})
		if err := rc.StoreOne("r/1", "later"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // virtual
		for range 20 {
			await(time.Hour, "the end", func(st keyring.Status) bool { return len(st.Rekeying) == 0 })
			rc.Rotate(keyring.RotateOptions{Full: true})
		}
	})
}
