package scenarios_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

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
		rc.Store("a", 9) // writes both anew
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

// TestChangedTellsOfARekey: whoever takes the channel, looks, and waits, sees all of it, and what is
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
		if err := rc.StoreOne("r/1", "anew"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // virtual
		for range 20 {
			await(time.Hour, "the end", func(st keyring.Status) bool { return len(st.Rekeying) == 0 })
			rc.Rotate(keyring.RotateOptions{Full: true})
		}
	})
}
