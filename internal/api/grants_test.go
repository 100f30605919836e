package api

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
)

func TestGrant(t *testing.T) {
	web := policy.LabelGrant{Name: "web", Users: []string{"alice"}, Labels: map[string][]string{"app": {"web", "db"},
		"env": {"*"}}}
	ops := policy.LabelGrant{Name: "ops", Groups: []string{"ops"}, Labels: map[string][]string{"app": {"cron"}},
		Require: policy.Labels{"team": "ops"}}
	free := policy.LabelGrant{Name: "free", Groups: []string{"100"}, Labels: map[string][]string{"tier": {"1"}},
		Require: policy.Labels{"team": "free"}}
	grants := []policy.LabelGrant{web, ops, free}
	alice := caller{uid: 1000, user: "alice"}
	aliceOps := caller{uid: 1000, user: "alice", groups: []string{"27", "ops"}}
	tests := []struct {
		name  string
		who   caller
		asked policy.Labels
		want  policy.Labels
		err   string
	}{
		{"root", caller{uid: 0, user: "root"}, policy.Labels{"any": "thing"}, policy.Labels{"any": "thing"}, ""},
		{"granted", alice, policy.Labels{"app": "db", "env": "x"}, policy.Labels{"app": "db", "env": "x"}, ""},
		{"a part of it", alice, policy.Labels{"env": "x"}, policy.Labels{"env": "x"}, ""},
		{"by group, required is added", caller{uid: 7, groups: []string{"ops"}}, policy.Labels{"app": "cron"},
			policy.Labels{"app": "cron", "team": "ops"}, ""},
		{"required and given", caller{uid: 7, groups: []string{"ops"}}, policy.Labels{"app": "cron", "team": "ops"},
			policy.Labels{"app": "cron", "team": "ops"}, ""},
		{"by gid", caller{uid: 7, groups: []string{"100"}}, policy.Labels{"tier": "1"},
			policy.Labels{"tier": "1", "team": "free"}, ""},
		{"required of all grants", aliceOps, policy.Labels{"app": "web"}, policy.Labels{"app": "web", "team": "ops"},
			""},
		{"halves of two grants", aliceOps, policy.Labels{"app": "cron", "env": "x"}, nil, "app=cron,env=x"},
		{"grants against each other", caller{uid: 7, groups: []string{"ops", "100"}}, policy.Labels{"tier": "1"}, nil,
			"team=ops and team=free"},
		{"a name like a number", caller{uid: 7, user: "1000"}, policy.Labels{"app": "web"}, nil, "No LabelGrant"},
		{"nobody", caller{uid: 7}, policy.Labels{"app": "web"}, nil, "No LabelGrant"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := grant(grants, tt.who, tt.asked)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v; want %q", err, tt.err)
			}
		})
	}
}
