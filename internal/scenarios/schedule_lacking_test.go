package scenarios_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// TestLeaderThatLacksAKeyBacksUpAsOften: its backups have less than the one that is noted, which goes on to count and stays in the
// store. When it gets the key, all is as it was.
func TestLeaderThatLacksAKeyBacksUpAsOften(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 3, 5*time.Minute, func(cfg *keyring.Config) { cfg.Rotation.Every, cfg.Backups.Keep = -1, 2 })
		leader := keyringtest.Ready(t, s.Cluster)
		keyringtest.AwaitKeys(t, s.Cluster)
		lacks, heals := keyringtest.Follower(s.Cluster), make(chan struct{})
		s.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			select {
			case <-heals:
				return keyringtest.Reply{}
			default:
			}
			if e.Kind == "call" && (strings.Contains(e.What, `"fetch":{`) && e.Server.ID == lacks.ID || strings.Contains(e.What, `"offer":{`) && e.To == lacks.ID) {
				return keyringtest.Reply{Err: errors.New("connection refused")}
			}
			return keyringtest.Reply{}
		})
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(1000 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Hour) // the backup of this leader has it
		noted := s.last()
		if noted.Index < keyringtest.Ring(leader.FSM).Key(meta.KeyID(key.ID)).CreateIndex {
			t.Fatal("the backup lacks the key")
		}
		keyringtest.MakeLeader(t, s.Cluster, lacks)
		keyringtest.Ready(t, s.Cluster)
		before := s.store.begun()
		s.store.onCall(func(ctx context.Context, call string) error {
			if s.store.begun() > before+50 { // so that time goes on
				return errors.New("too many")
			}
			return ctx.Err()
		})
		time.Sleep(5 * 24 * time.Hour)
		if n := s.store.begun() - before; n < 4 || n > 6 {
			t.Errorf("%d backups in five days", n)
		}
		if s.last() != noted {
			t.Errorf("%+v is noted, and had the key", s.last())
		}
		s.checkFiles("while the leader lacks a key", 1+s.store.begun()-before+1)
		close(heals)
		time.Sleep(50 * time.Hour)
		if s.last() == noted {
			t.Error("no backup is noted when the leader has the key")
		}
		s.checkFiles("then", 2)
	})
}
