package peer_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

var (
	goldenTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	offeredKey = meta.NewKey{ID: keyID(1), Algorithm: "RS256", Check: meta.CheckValue{1}, Created: goldenTime}
	orphanKey  = meta.NewKey{ID: keyID(1), Algorithm: "EdDSA", Public: ed25519Public, Check: meta.CheckValue{0xc0, 31: 0xff}, Created: goldenTime}
	goldenHold = meta.Hold{Server: "a", Keystore: meta.KeystoreID(id(9)), Gained: []meta.KeyID{keyID(1), keyID(2)}, Lost: []meta.KeyID{keyID(3)}}
)

func keyID(b byte) meta.KeyID { return meta.KeyID(id(b)) }

// stored returns the golden message of that name.
func stored(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b, []byte("\n"))
}

// calls are the golden calls: what each sends, is answered with, and returns.
var calls = []struct {
	name, request, answer string
	call                  func(context.Context, peer.Calls) (any, error)
	want                  any
}{
	{"Hello", "v1/request-hello", "v1/answer-hello",
		func(ctx context.Context, c peer.Calls) (any, error) { return c.Hello(ctx, "b") },
		&peer.Hello{Build: 1, Keystore: meta.KeystoreID(id(9)), Orphans: []meta.NewKey{orphanKey}}},
	{"HelloWaiting", "v3/request-hello-unproven", "v2/answer-hello-waiting",
		func(ctx context.Context, c peer.Calls) (any, error) { return c.HelloWaiting(ctx, "b") },
		&peer.Hello{Build: 1, Keystore: meta.KeystoreID(id(9)), Waiting: &peer.Waiting{Files: 3, Of: 50, KEKs: []string{"kms"}}}},
	{"Held", "v1/request-ask", "v1/answer-ask",
		func(ctx context.Context, c peer.Calls) (any, error) { return c.Held(ctx, "b", []meta.KeyID{keyID(1)}) },
		peer.Held{Keystore: meta.KeystoreID(id(9)), Keys: []meta.KeyID{keyID(1)}}},
	{"Offer", "v2/request-offer-configuration", "v1/answer-ask",
		func(ctx context.Context, c peer.Calls) (any, error) { return c.Offer(ctx, "b", offeredKey, 7) },
		peer.Held{Keystore: meta.KeystoreID(id(9)), Keys: []meta.KeyID{keyID(1)}}},
	{"Offer without a configuration", "v1/request-offer", "v1/answer-ask",
		func(ctx context.Context, c peer.Calls) (any, error) { return c.Offer(ctx, "b", offeredKey, 0) },
		peer.Held{Keystore: meta.KeystoreID(id(9)), Keys: []meta.KeyID{keyID(1)}}},
	{"Report", "v1/request-hold", "v1/answer-hold",
		func(ctx context.Context, c peer.Calls) (any, error) { return nil, c.Report(ctx, "b", goldenHold) },
		nil},
	{"Removed", "v1/request-removed", "v1/answer-removed",
		func(ctx context.Context, c peer.Calls) (any, error) {
			return c.Removed(ctx, "b", []meta.KeyID{keyID(1), keyID(2)})
		},
		[]meta.KeyID{keyID(2)}},
	{"State", "v2/request-confirm", "v2/answer-state",
		func(ctx context.Context, c peer.Calls) (any, error) {
			return c.State(ctx, "b", peer.StateRequest{Confirm: true})
		},
		goldenAnswers["state"].State},
	{"Leave", "v4/request-leave-by", "v4/answer-leave-stays",
		func(ctx context.Context, c peer.Calls) (any, error) { return c.Leave(ctx, "b", "ann") },
		"no majority of them holds 1 key"},
}

// TestCallsSendAndReadGoldenMessages holds the typed calls against the messages of the golden set.
func TestCallsSendAndReadGoldenMessages(t *testing.T) {
	for _, tt := range calls {
		var sent []byte
		c := peer.Calls{Self: "a", Send: func(_ context.Context, to string, request []byte) ([]byte, error) {
			if to != "b" {
				t.Errorf("%s: sent to %q", tt.name, to)
			}
			sent = request
			return stored(t, tt.answer), nil
		}}
		got, err := tt.call(t.Context(), c)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
		if want := stored(t, tt.request); !bytes.Equal(sent, want) {
			t.Errorf("%s: sent\n%s\nwant\n%s", tt.name, sent, want)
		}
	}
}

// golden handlers return what the golden answers say.
func handlers(t *testing.T, wrong func(format string, args ...any)) peer.Handlers {
	held := peer.Held{Keystore: meta.KeystoreID(id(9)), Keys: []meta.KeyID{keyID(1)}}
	same := func(got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			wrong("%+v, want %+v", got, want)
		}
	}
	return peer.Handlers{
		Self:    "b",
		Cluster: func() meta.ClusterID { return binding.Cluster },
		Hello: func(from string, q peer.HelloRequest) (*peer.Hello, error) {
			same(from, "a")
			if q.Waiting {
				return &peer.Hello{Build: 1, Keystore: meta.KeystoreID(id(9)), Waiting: &peer.Waiting{Files: 3, Of: 50, KEKs: []string{"kms"}}}, nil
			}
			return &peer.Hello{Build: 1, Keystore: meta.KeystoreID(id(9)), Orphans: []meta.NewKey{orphanKey}}, nil
		},
		Report: func(h meta.Hold) error {
			same(h, goldenHold)
			return nil
		},
		Held: func(_ context.Context, ids []meta.KeyID) (peer.Held, error) {
			same(ids, []meta.KeyID{keyID(1)})
			return held, nil
		},
		Offer: func(_ context.Context, from string, k meta.NewKey, configuration uint64) (peer.Held, error) {
			same(from, "a")
			same(k, offeredKey)
			if configuration != 0 && configuration != 7 {
				wrong("configuration %d", configuration)
			}
			return held, nil
		},
		Removed: func(_ context.Context, ids []meta.KeyID) ([]meta.KeyID, error) {
			same(ids, []meta.KeyID{keyID(1), keyID(2)})
			return []meta.KeyID{keyID(2)}, nil
		},
		State: func(_ context.Context, q peer.StateRequest) (*peer.StateAnswer, error) {
			same(q.Confirm, true)
			return goldenAnswers["state"].State, nil
		},
		Leave: func(_ context.Context, from, by string) (string, error) {
			same(from, "a")
			same(by, "ann")
			return "no majority of them holds 1 key", nil
		},
	}
}

// TestHandlersReadAndAnswerGoldenMessages holds the typed handlers against the messages of the golden set.
func TestHandlersReadAndAnswerGoldenMessages(t *testing.T) {
	for _, tt := range calls {
		h := handlers(t, func(format string, args ...any) { t.Errorf(tt.name+": "+format, args...) })
		got, err := h.Answer(t.Context(), "a", stored(t, tt.request))
		if want := stored(t, tt.answer); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: answered\n%s, %v\nwant\n%s", tt.name, got, err, want)
		}
	}
}

func TestHandlersRefuse(t *testing.T) {
	h := handlers(t, t.Errorf)
	h.Held = func(context.Context, []meta.KeyID) (peer.Held, error) {
		return peer.Held{}, &peer.Refusal{Code: peer.NotReady}
	}
	h.Report = func(meta.Hold) error { return &peer.Refusal{Code: peer.NotLeader, Leader: "server-2"} }
	lost := errors.New("lost")
	h.Removed = func(context.Context, []meta.KeyID) ([]meta.KeyID, error) { return nil, lost }
	for _, tt := range []struct {
		name    string
		request []byte
		want    string
	}{
		{"garbage", []byte("{"), `{"version":1,"error":{"code":"bad-request"}}`},
		{"newer", []byte(`{"version":5,"hello":{}}`), `{"version":1,"error":{"code":"unsupported"}}`},
		{"refused", stored(t, "v1/request-ask"), `{"version":1,"error":{"code":"not-ready"}}`},
		{"refused with the leader", stored(t, "v1/request-hold"), string(stored(t, "v1/answer-not-leader"))},
	} {
		got, err := h.Answer(t.Context(), "a", tt.request)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.name, got, err, tt.want)
		}
	}
	if got, err := h.Answer(t.Context(), "a", stored(t, "v1/request-removed")); err != lost {
		t.Errorf("another error: answered %s, %v", got, err)
	}
	waits := handlers(t, t.Errorf)
	waits.Hello = func(string, peer.HelloRequest) (*peer.Hello, error) {
		return &peer.Hello{Build: 1, Keystore: meta.KeystoreID(id(9)), Waiting: &peer.Waiting{Files: 1, Of: 1}}, nil
	}
	if got, err := waits.Answer(t.Context(), "a", stored(t, "v1/request-hello")); err == nil {
		t.Errorf("an answer of version 2 to a request of version 1: %s", got)
	}
}

// TestHelloWaitingAsksOldBuildsWithout is a server of a build that knows only version 1.
func TestHelloWaitingAsksOldBuildsWithout(t *testing.T) {
	var sent []string
	c := peer.Calls{Self: "a", Send: func(_ context.Context, _ string, request []byte) ([]byte, error) {
		sent = append(sent, string(request))
		if len(sent) <= 2 {
			return (&peer.Refusal{Code: peer.Unsupported}).Encode()
		}
		return stored(t, "v1/answer-hello"), nil
	}}
	h, err := c.HelloWaiting(t.Context(), "b")
	if err != nil || len(h.Orphans) != 1 {
		t.Fatalf("%+v, %v", h, err)
	}
	if want := []string{string(stored(t, "v3/request-hello-unproven")), string(stored(t, "v2/request-hello-waiting")), string(stored(t, "v1/request-hello"))}; !reflect.DeepEqual(sent, want) {
		t.Errorf("sent %q, want %q", sent, want)
	}
}

func TestCallsNameTheServer(t *testing.T) {
	down := errors.New("down")
	c := peer.Calls{Send: func(context.Context, string, []byte) ([]byte, error) { return nil, down }}
	if _, err := c.Hello(t.Context(), "b"); !errors.Is(err, down) || !strings.Contains(err.Error(), "call b: ") {
		t.Errorf("not sent: %v", err)
	}
	c.Send = func(context.Context, string, []byte) ([]byte, error) {
		return (&peer.Refusal{Code: peer.NotReady}).Encode()
	}
	if _, err := c.Hello(t.Context(), "b"); !peer.Refused(err, peer.NotReady) || !strings.Contains(err.Error(), "call b: ") {
		t.Errorf("refused: %v", err)
	}
	if err := c.Report(t.Context(), "b", meta.Hold{}); err == nil || peer.Refused(err, peer.NotReady) {
		t.Errorf("a report without a keystore was sent: %v", err)
	}
}

// TestFetchWipesWhatItHandedOut fetches from the handlers, and looks at the bytes on both sides afterwards.
func TestFetchWipesWhatItHandedOut(t *testing.T) {
	material := bytes.Repeat([]byte{7}, 1300)
	served := bytes.Clone(material)
	h := handlers(t, t.Errorf)
	h.Fetch = func(ids []meta.KeyID) ([]peer.Secret, error) {
		if want := []meta.KeyID{keyID(1), keyID(2)}; !reflect.DeepEqual(ids, want) {
			t.Errorf("asked for %v, want %v", ids, want)
		}
		return []peer.Secret{peer.NewSecret(keyID(2), meta.CheckValue{1}, served)}, nil
	}
	c := peer.Calls{Self: "a", Send: func(ctx context.Context, to string, request []byte) ([]byte, error) {
		return h.Answer(ctx, "a", request)
	}}
	var taken []byte
	err := c.Fetch(t.Context(), "b", clusterOf(binding), []meta.KeyID{keyID(1), keyID(2)}, func(id meta.KeyID, m []byte) {
		if id != keyID(2) || !bytes.Equal(m, material) {
			t.Errorf("took %x of %s", m, id)
		}
		taken = m
	})
	if err != nil || len(taken) != len(material) {
		t.Fatalf("%d bytes, %v", len(taken), err)
	}
	if none := make([]byte, len(material)); !bytes.Equal(taken, none) || !bytes.Equal(served, none) {
		t.Error("material was left in memory")
	}
	err = c.Fetch(t.Context(), "c", clusterOf(binding), []meta.KeyID{keyID(1), keyID(2)}, func(meta.KeyID, []byte) { t.Error("took it") })
	if !errors.Is(err, peer.ErrOpen) || !strings.Contains(err.Error(), "fetch from c") {
		t.Errorf("another server's answer: %v", err)
	}
}

func TestFetchOfOtherKeysIsABadRequest(t *testing.T) {
	h := handlers(t, t.Errorf)
	h.Fetch = func([]meta.KeyID) ([]peer.Secret, error) {
		return []peer.Secret{peer.NewSecret(keyID(3), meta.CheckValue{1}, []byte{1})}, nil
	}
	c := peer.Calls{Self: "a", Send: func(ctx context.Context, to string, request []byte) ([]byte, error) {
		return h.Answer(ctx, "a", request)
	}}
	err := c.Fetch(t.Context(), "b", clusterOf(binding), []meta.KeyID{keyID(1)}, func(meta.KeyID, []byte) { t.Error("took it") })
	if !peer.Refused(err, peer.BadRequest) {
		t.Error(err)
	}
}

func TestAllStopsWhenItHasEnoughAndWaits(t *testing.T) {
	var running atomic.Int32
	answers := peer.All(t.Context(), []string{"a", "b", "c", "d"}, func(ctx context.Context, server string) (string, error) {
		running.Add(1)
		defer running.Add(-1)
		switch server {
		case "a", "b":
			return server + "!", nil
		case "c":
			return "c?", errors.New("down")
		}
		<-ctx.Done() // d answers only to be let go
		return "d!", nil
	}, func(answers map[string]string) bool { return len(answers) == 2 })
	if want := map[string]string{"a": "a!", "b": "b!"}; !reflect.DeepEqual(answers, want) {
		t.Errorf("%v, want %v", answers, want)
	}
	if n := running.Load(); n != 0 {
		t.Errorf("%d still run", n)
	}
}

func TestAllWithoutEnoughAsksEverybody(t *testing.T) {
	answers := peer.All(t.Context(), []string{"a", "b", "c"}, func(_ context.Context, server string) (int, error) {
		if server == "b" {
			return 0, errors.New("down")
		}
		return int(server[0]), nil
	}, nil)
	if want := map[string]int{"a": 'a', "c": 'c'}; !reflect.DeepEqual(answers, want) {
		t.Errorf("%v, want %v", answers, want)
	}
}

func clusterOf(b peer.Binding) func() meta.ClusterID {
	return func() meta.ClusterID { return b.Cluster }
}
