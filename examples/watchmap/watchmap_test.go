package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring/examples/watchmap/store"
	"filippo.io/age"
)

// written is what a test has written.
type written map[string]string

// put writes n values.
func (v written) put(leader *server, prefix string, n int) (last uint64) {
	leader.c.T.Helper()
	for i := range n {
		key := fmt.Sprintf("%s/%03d", prefix, i)
		v[key] = "plaintext of " + key
		leader.do("PUT", "/values/"+key, []byte(v[key]), &last)
	}
	return last
}

// check wants a server to have all of them, and no others, as soon as it has what was written at a version.
func (v written) check(s *server, version uint64) {
	s.c.T.Helper()
	s.do("GET", "/ready", nil, nil) // it has caught up
	s.awaitVersion(version)
	var list []store.Entry
	s.do("GET", "/values", nil, &list)
	if len(list) != len(v) {
		s.c.T.Errorf("%s has %d values, want %d", s.ID, len(list), len(v))
	}
	for key, want := range v {
		var e store.Entry
		if s.do("GET", "/values/"+key, nil, &e); string(e.Value) != want {
			s.c.T.Errorf("%s: %s is %q, want %q", s.ID, key, e.Value, want)
		}
	}
}

// awaitVersion waits until a server has what was written at a version.
func (s *server) awaitVersion(version uint64) {
	s.c.T.Helper()
	s.do("GET", fmt.Sprintf("/watches/all?after=%d", version-1), nil, nil)
}

// event is a line of the audit.
type event struct{ Step, Key string }

// awaitStep waits until a server has said that a key has come to a step, and returns the key. An empty key is any.
func (s *server) awaitStep(step, key string) string {
	s.c.T.Helper()
	var e event
	s.Await(step+" "+key, func(line string) bool {
		return json.Unmarshal([]byte(line), &e) == nil && e.Step == step && (key == "" || e.Key == key)
	})
	return e.Key
}

// TestClusterOfBeforeTheKeyringIsUpgraded server by server, and has all of its values, which are encrypted then.
func TestClusterOfBeforeTheKeyringIsUpgraded(t *testing.T) {
	t.Parallel()
	c, v := newCluster(t), written{}
	all := []*server{c.add("s1"), c.add("s2"), c.add("s3")}
	for _, s := range all {
		s.Start("before", initial(all...))
	}
	leader := all[0].leader("")
	leader.do("POST", "/watches/all?op=watch", nil, nil)
	last := v.put(leader, "snapshot", 20)
	for _, s := range all {
		s.awaitVersion(last)
		s.do("POST", "/snapshot", nil, nil)
	}
	v.put(leader, "log", 20)
	var old store.Entry
	leader.do("GET", "/values/snapshot/007", nil, &old)
	for _, s := range all {
		s.Stop()
		s.Start("now")
	}
	leader = all[0].ready(all...)
	leader.Await("the values are sealed", func(line string) bool {
		return strings.Contains(line, "no record is in the clear any longer")
	})
	last = v.put(leader, "new", 5)
	for _, s := range all {
		v.check(s, last)
		var e store.Entry
		if s.do("GET", "/values/snapshot/007", nil, &e); e.Version != old.Version {
			t.Errorf("%s: the version is %d, and was %d", s.ID, e.Version, old.Version)
		}
		s.do("POST", "/snapshot", nil, nil)
		if b := s.snapshot(); strings.Contains(b, "plaintext") || !strings.Contains(b, `"prefix"`) {
			t.Errorf("%s has plaintexts, or no watch, in its snapshot", s.ID)
		}
	}
}

// ready waits until the servers hold the active key, and returns the leader.
func (s *server) ready(all ...*server) *server {
	s.c.T.Helper()
	for _, s := range all {
		s.do("GET", "/ready", nil, nil)
	}
	return s.leader("")
}

// snapshot is the newest one that raft has made.
func (s *server) snapshot() string {
	s.c.T.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir, "raft", "snapshots", "*", "state.bin"))
	if err != nil || len(files) == 0 {
		s.c.T.Fatal(files, err)
	}
	b, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		s.c.T.Fatal(err)
	}
	return string(b)
}

// TestClusterGrowsRotatesLosesItsLeaderShrinksAndIsRestored: from one server to five, and all servers open all values all along.
func TestClusterGrowsRotatesLosesItsLeaderShrinksAndIsRestored(t *testing.T) {
	t.Parallel()
	c, v := newCluster(t), written{}
	s1 := c.add("s1")
	s1.Start("now", initial(s1), "-rate=100")
	s1.ready(s1)
	s1.do("POST", "/watches/all?op=watch", nil, nil)
	last := v.put(s1, "a", 200)
	for _, id := range []string{"s2", "s3", "s4", "s5"} {
		c.join(s1, id)
	}
	all := []*server{s1, c.servers["s2"], c.servers["s3"], c.servers["s4"], c.servers["s5"]}
	for _, s := range all {
		v.check(s, last)
	}

	first := s1.awaitStep("activated", "")
	s1.do("POST", "/keyring/v1/keys", []byte(`{}`), nil) // the old key stays
	s1.do("POST", "/keyring/v1/keys", []byte(`{"full":true}`), nil)
	s1.awaitStep("rekeying", first)
	s1.Kill()
	rest := all[1:]
	if left := rest[0].under(first); left == 0 {
		t.Error("all values had been encrypted again: that is not the middle")
	}
	leader := rest[0].leader("s1")
	rest[0].ready(rest...)
	leader.awaitStep("deprecated", first)
	last = v.put(leader, "b", 5)
	s1.Start("now")
	for _, s := range all {
		v.check(s, last)
	}
	c.shrinkAndRestore(leader, v)
}

// under is how many values a server has that are encrypted under a key.
func (s *server) under(key string) int {
	s.c.T.Helper()
	var status struct {
		Keys []struct {
			ID      string
			Records int
		}
	}
	s.do("GET", "/keyring/v1/status", nil, &status)
	for _, k := range status.Keys {
		if k.ID == key {
			return k.Records
		}
	}
	return 0
}

// join adds a server, which asks with a token, and waits until it votes.
func (c *cluster) join(leader *server, id string) {
	c.T.Helper()
	var made struct{ Token string }
	leader.do("POST", "/keyring/v1/tokens", fmt.Appendf(nil, `{"id":%q}`, id), &made)
	s := c.add(id)
	token := filepath.Join(s.Dir, "token")
	if err := os.WriteFile(token, []byte(made.Token), 0o600); err != nil {
		c.T.Fatal(err)
	}
	s.Start("now", "-join="+leader.Addr, "-token="+token, "-rate=100")
	s.do("GET", "/ready", nil, nil)
	leader.Await("the vote of "+id, func(line string) bool {
		return strings.Contains(line, "promoting a server") && strings.Contains(line, "id="+id)
	})
}

// shrinkAndRestore leaves one server, backs it up, and restores that in the place of the cluster.
func (c *cluster) shrinkAndRestore(leader *server, v written) {
	c.T.Helper()
	for _, id := range []string{"s1", "s2", "s3", "s4", "s5"} {
		if id != leader.ID {
			leader.do("DELETE", "/keyring/v1/servers/"+id, nil, nil)
			c.servers[id].Kill()
		}
	}
	last := v.put(leader, "c", 5)
	v.check(leader, last)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		c.T.Fatal(err)
	}
	key, backup := filepath.Join(c.Dir, "key.txt"), filepath.Join(c.Dir, "backup.age")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		c.T.Fatal(err)
	}
	c.run(leader, "backup", "-to", identity.Recipient().String(), backup)
	leader.Kill()
	again := c.add("s6")
	c.run(again, "restore", "-identity", key, "-unauthenticated", backup)
	again.Start("now")
	again.ready(again)
	v.check(again, last)
	last = v.put(again, "d", 5)
	v.check(again, last)
}

// run runs a command of an operator's, for a server.
func (c *cluster) run(s *server, args ...string) {
	c.T.Helper()
	if err := run(c.T.Context(), append([]string{"-id", s.ID, "-dir", s.Dir, "-addr", s.Addr}, args...)); err != nil {
		c.T.Fatal(err)
	}
}
