package kms_test

import (
	"bytes"
	"context"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/kms"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
)

// transitKey stands in for Vault's transit engine with a key named "keyring" that has versions, and that can be made to
// refuse or throttle.
type transitKey struct {
	tb testing.TB

	mu       sync.Mutex // guards below
	versions []cipher.AEAD
	oldest   int // older versions open nothing
	status   int // of every answer, if it is not zero
}

func newTransitKey(tb testing.TB) (*transitKey, *httptest.Server) {
	k := &transitKey{tb: tb, versions: []cipher.AEAD{newGCM(tb)}, oldest: 1}
	srv := httptest.NewServer(k)
	tb.Cleanup(srv.Close)
	return k, srv
}

func (k *transitKey) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *transitKey) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	answer := func(status int, body any) {
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			k.tb.Error(err)
		}
	}
	refuse := func(status int) { answer(status, map[string]any{"errors": []string{http.StatusText(status)}}) }
	var in struct {
		Plaintext  []byte
		Ciphertext string
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || k.status != 0 {
		refuse(max(k.status, 400))
		return
	}
	if strings.HasPrefix(r.URL.Path, "/v1/transit/encrypt/") {
		v := len(k.versions)
		c := k.versions[v-1].Seal(nil, nil, in.Plaintext, nil)
		answer(200, map[string]any{"data": map[string]any{"ciphertext": fmt.Sprintf("vault:v%d:%s", v, base64.StdEncoding.EncodeToString(c))}})
		return
	}
	parts := strings.Split(in.Ciphertext, ":")
	if len(parts) != 3 { // it is asked for something else, as to renew a token
		refuse(404)
		return
	}
	v, _ := strconv.Atoi(strings.TrimPrefix(parts[1], "v"))
	c, _ := base64.StdEncoding.DecodeString(parts[2])
	if v < k.oldest || v > len(k.versions) {
		refuse(400)
		return
	}
	p, err := k.versions[v-1].Open(nil, nil, c, nil)
	if err != nil {
		refuse(400)
		return
	}
	answer(200, map[string]any{"data": map[string]any{"plaintext": p}})
}

func TestErrorsOfAKMSAreToldApart(t *testing.T) {
	key, srv := newTransitKey(t)
	k := newKEK(t, "transit", newTransit(t, srv.URL))
	wrapped := mustWrap(t, k)
	for status, want := range map[int]error{
		403: keyring.ErrKEKRefused, 404: keyring.ErrKEKRefused, 400: keyring.ErrKEKRefused, 429: keyring.ErrKEKThrottled, 408: nil, 500: nil, 503: nil,
	} {
		key.set(func() { key.status = status })
		for _, err := range []error{second(k.Wrap(t.Context(), secret, aad)), second(k.Unwrap(t.Context(), wrapped, aad))} {
			for _, kind := range []error{keyring.ErrKEKRefused, keyring.ErrKEKThrottled} {
				if errors.Is(err, kind) != (kind == want) || err == nil {
					t.Errorf("%d: %v", status, err)
				}
			}
		}
	}
}

func second(_ []byte, err error) error { return err }

// Errors as the clients of other services have them.
type (
	awsError  struct{ code string }
	awsStatus struct {
		error
		status int
	}
	awsAround  struct{ error } // an error, in the way of before there was Unwrap
	awsV2Error struct {
		error
		status int
	}
	ociError struct {
		error
		status int
	}
	aliError    struct{ code string }
	tencent     struct{ code string }
	googleError struct {
		error
		Code int
	}
	azureError struct {
		StatusCode int
		ErrorCode  string
	}
)

func (e awsError) Error() string          { return e.code }
func (e awsError) Code() string           { return e.code }
func (e awsStatus) StatusCode() int       { return e.status }
func (e awsAround) OrigErr() error        { return e.error }
func (e awsV2Error) HTTPStatusCode() int  { return e.status }
func (e ociError) GetHTTPStatusCode() int { return e.status }
func (e aliError) Error() string          { return "SDK.ServerError" }
func (e aliError) ErrorCode() string      { return e.code }
func (e tencent) Error() string           { return "[TencentCloudSDKError]" }
func (e tencent) GetCode() string         { return e.code }
func (e *azureError) Error() string       { return "RESPONSE " + strconv.Itoa(e.StatusCode) }

func TestErrorsOfOtherServicesAreToldApart(t *testing.T) {
	no := errors.New("no")
	for _, c := range []struct {
		err  error
		want error
	}{
		{awsError{"AccessDeniedException"}, keyring.ErrKEKRefused}, {awsError{"DisabledException"}, keyring.ErrKEKRefused},
		{awsError{"ThrottlingException"}, keyring.ErrKEKThrottled}, {awsError{"LimitExceededException"}, keyring.ErrKEKThrottled},
		{awsError{"RequestError"}, nil}, {awsError{"KMSInternalException"}, nil}, {awsError{"NotFoundException"}, keyring.ErrKEKRefused},
		{awsStatus{no, 400}, keyring.ErrKEKRefused}, {awsStatus{no, 429}, keyring.ErrKEKThrottled}, {awsStatus{no, 500}, nil},
		{awsAround{awsError{"AccessDeniedException"}}, keyring.ErrKEKRefused},
		{errors.Join(no, awsError{"ThrottlingException"}), keyring.ErrKEKThrottled},
		{awsV2Error{no, 403}, keyring.ErrKEKRefused}, {ociError{no, 404}, keyring.ErrKEKRefused}, {ociError{no, 429}, keyring.ErrKEKThrottled},
		{aliError{"Throttling.User"}, keyring.ErrKEKThrottled}, {tencent{"LimitExceeded"}, keyring.ErrKEKThrottled},
		{googleError{no, 403}, keyring.ErrKEKRefused}, {googleError{no, 503}, nil}, {aliError{"TooManyRequestsException"}, keyring.ErrKEKThrottled},
		{&azureError{403, "Forbidden"}, keyring.ErrKEKRefused}, {&azureError{429, "Throttled"}, keyring.ErrKEKThrottled}, {&azureError{503, ""}, nil},
		{&azureError{0, "KMSInvalidStateException"}, keyring.ErrKEKRefused},
		{errors.New("rpc error: code = PermissionDenied desc = no"), keyring.ErrKEKRefused},
		{errors.New("rpc error: code = ResourceExhausted desc = quota"), keyring.ErrKEKThrottled},
		{errors.New("rpc error: code = Unavailable desc = no such host"), nil}, {errors.New("dial tcp: no such host"), nil},
	} {
		k := newKEK(t, "stub", stub{encrypt: func([]byte) (*wrapping.BlobInfo, error) { return nil, fmt.Errorf("error encrypting: %w", c.err) }})
		_, err := k.Wrap(t.Context(), secret, aad)
		if !errors.Is(err, c.err) || errors.Is(err, keyring.ErrKEKRefused) != (c.want == keyring.ErrKEKRefused) ||
			errors.Is(err, keyring.ErrKEKThrottled) != (c.want == keyring.ErrKEKThrottled) {
			t.Errorf("%v, want %v", err, c.want)
		}
	}
}

// TestErrorThatCanNotBeLookedAtHarmsNobody: it looks as if its client had forgotten a part of it.
func TestErrorThatCanNotBeLookedAtHarmsNobody(t *testing.T) {
	for name, bad := range map[string]error{"a part": &brokenError{}, "a method": (*brokenError)(nil)} {
		k := newKEK(t, "stub", stub{encrypt: func([]byte) (*wrapping.BlobInfo, error) { return nil, bad }})
		if _, err := k.Wrap(t.Context(), secret, aad); err == nil || errors.Is(err, keyring.ErrKEKRefused) || errors.Is(err, keyring.ErrKEKThrottled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type (
	brokenError struct{ *part }
	part        struct{ StatusCode int }
)

func (e *brokenError) Error() string { return strconv.Itoa(e.StatusCode) }

// TestRewrapMovesToTheNewVersion, which Status has counted: then the old one can go.
func TestRewrapMovesToTheNewVersion(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	key, srv := newTransitKey(t)
	dir := t.TempDir()
	n := openNode(t, ctx, dir, newKEK(t, "transit", newTransit(t, srv.URL)))
	sealed, err := n.Encrypt(ctx, []byte("data"), aad)
	if err != nil {
		t.Fatal(err)
	}
	shut(t, n)
	key.set(func() { key.versions = append(key.versions, newGCM(t)) })
	n = openNode(t, ctx, dir, newKEK(t, "transit", newTransit(t, srv.URL)))
	if st, err := n.Keyring().Status(ctx); err != nil || st.OnOldKEKs != 1 {
		t.Errorf("%d on old KEKs, %v", st.OnOldKEKs, err)
	}
	if err := n.Keyring().Rewrap(ctx); err != nil {
		t.Error(err)
	}
	if st, err := n.Keyring().Status(ctx); err != nil || st.OnOldKEKs != 0 {
		t.Errorf("%d on old KEKs, %v", st.OnOldKEKs, err)
	}
	shut(t, n)
	key.set(func() { key.oldest = 2 })
	n = openNode(t, ctx, dir, newKEK(t, "transit", newTransit(t, srv.URL)))
	defer shut(t, n)
	if got, err := n.Decrypt(ctx, sealed, aad); err != nil || !bytes.Equal(got, []byte("data")) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestOldKMSThatIsGoneIsNamed although nothing is wrapped under it: what is not its own, the KEK refuses without asking it.
func TestOldKMSThatIsGoneIsNamed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, srv := newTransitKey(t)
	old, err := kms.New("old", newTransit(t, srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	srv.Close()
	n := startNode(t, ctx, t.TempDir(), []keyring.KEK{keyring.InlineKEK()}, old)
	defer shut(t, n)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := n.Keyring().Status(ctx)
	if err != nil || len(st.KEKs) != 2 || st.KEKs[1].State != keyring.KEKUnavailable || st.KEKs[1].Away == "" {
		t.Errorf("%+v, %v", st.KEKs, err)
	}
}
