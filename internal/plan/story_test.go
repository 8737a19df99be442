package plan_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestStories plays the transcripts in testdata. A paragraph that begins with # is prose.
// Any other is a list of commands, a line of dashes, and what comes of them.
//
//	servers a b c         begin: a cluster of voters; the first leads
//	policy EVERY LEAD     rotation policy; 30d 1d if not given
//	run TIME              let the cluster live on
//	off TIME              all servers are switched off for so long
//	rotate [full] [in T]  the operator rotates, on the leader
//	down, up S…           servers crash, and come back
//	wipe S…               servers lose their disk, and have another keystore ID from now on
//	lose S K…             one server loses some key files
//	give S K…             one server finds key files
//	stuck, free S…        replicators stop, and go on
//	lead S                another leader
//	join S… / spare S…    servers join as voters, as non-voters
//	part S…               servers leave the configuration
//	next                  only say what plan.Next says
//	ring                  show the keys
func TestStories(t *testing.T) {
	play(t, "testdata/leader/*.txt", func(t *testing.T) player {
		var w *world
		return func(command string, args []string) string {
			if command == "servers" {
				w = newWorld(t, args...)
				return ""
			}
			tell(w, command, args)
			defer w.events.Reset()
			return brief(w.events.String())
		}
	})
}

// brief counts a question that is put again and again, with the same answers.
func brief(events string) string {
	var out strings.Builder
	said, again, last := "", 0, ""
	flush := func() {
		if again > 0 {
			fmt.Fprintf(&out, "    and %d times more, the last time at %s\n", again, last)
		}
		again = 0
	}
	for line := range strings.Lines(events) {
		at, what, _ := strings.Cut(line, "  ")
		what, _, repeats := strings.Cut(what, "; again at ")
		if repeats && what == said {
			again, last = again+1, at
			continue
		}
		flush()
		said = what
		out.WriteString(line)
	}
	flush()
	return out.String()
}

// player does one command of a transcript and returns what came of it.
type player func(command string, args []string) string

func play(t *testing.T, pattern string, begin func(*testing.T) player) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			play := begin(t)
			var got []string
			for paragraph := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n\n") {
				if strings.HasPrefix(paragraph, "#") {
					got = append(got, paragraph)
					continue
				}
				commands, _, _ := strings.Cut(paragraph, "\n----")
				out := commands + "\n----\n"
				for line := range strings.Lines(commands) {
					f := strings.Fields(line)
					out += play(f[0], f[1:])
				}
				got = append(got, strings.TrimSpace(out))
			}
			text := strings.Join(got, "\n\n") + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if text != string(b) {
				t.Errorf("%s now reads\n%s", file, text)
			}
		})
	}
}

func tell(w *world, command string, args []string) {
	each := func(do func(*server)) {
		for _, a := range args {
			do(w.server(a))
		}
	}
	switch command {
	case "policy":
		w.policy.Every, w.policy.Lead = duration(w, args[0]), duration(w, args[1])
	case "run":
		w.run(duration(w, args[0]))
	case "off":
		w.now = w.now.Add(duration(w, args[0]))
		w.lead(w.leader.id)
	case "rotate":
		add := meta.Add{Full: slices.Contains(args, "full")}
		if i := slices.Index(args, "in"); i >= 0 {
			add.Publish = w.now.Add(duration(w, args[i+1]))
		}
		w.create(w.leader, add)
	case "down":
		each(func(s *server) { s.down = true })
	case "up":
		each(func(s *server) { s.down = false })
	case "stuck":
		each(func(s *server) { s.stuck = true })
	case "free":
		each(func(s *server) { s.stuck = false })
	case "wipe":
		each(func(s *server) { s.wiped++; clear(s.files) })
	case "lose", "give":
		s := w.server(args[0])
		for _, k := range args[1:] {
			if s.files[keyNamed(w, k)] = true; command == "lose" {
				delete(s.files, keyNamed(w, k))
			}
			w.keys = max(w.keys, int(keyNamed(w, k)[15]))
		}
	case "lead":
		w.lead(args[0])
	case "join", "spare":
		for _, a := range args {
			w.join(a, command == "join")
		}
	case "part":
		each(func(s *server) { s.departed = true })
	case "next":
		tellNext(w)
	case "ring":
		tellRing(w)
	default:
		w.Fatalf("no command %q", command)
	}
}

func tellNext(w *world) {
	switch a := w.next(); {
	case a.Key != meta.KeyID{}:
		w.say("%s %s", a.Kind, name(a.Key))
	case !a.At.IsZero():
		w.say("%s %s", a.Kind, clock(a.At))
	case a.Until != 0:
		w.say("%s %s", a.Kind, clock(w.shown(a.Until)))
	default:
		w.say("%s", a.Kind)
	}
}

func tellRing(w *world) {
	for _, k := range w.ring.Keys {
		w.say("%s %s, recorded with %s, there with %s", name(k.ID), k.State, list(k.Holders), list(w.really(k.ID)))
	}
	for _, dead := range w.ring.Removed {
		w.say("%s removed", name(dead.ID))
	}
}

// really returns the servers that have the key.
func (w *world) really(id meta.KeyID) []string {
	var ids []string
	for _, s := range w.servers {
		if s.files[id] {
			ids = append(ids, s.id)
		}
	}
	return ids
}

func list(s []string) string {
	if len(s) == 0 {
		return "nobody"
	}
	return strings.Join(s, " ")
}

func keyNamed(t tb, s string) meta.KeyID {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "K"))
	if err != nil {
		t.Fatalf("key %q: %v", s, err)
	}
	return keyID(n)
}

// duration reads 30d and 24h30m alike.
func duration(t tb, s string) time.Duration {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil {
			t.Fatalf("duration %q: %v", s, err)
		}
		return time.Duration(n) * day
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("duration %q: %v", s, err)
	}
	return d
}
